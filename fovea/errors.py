"""One error tree. Each class carries its HTTP status, its gRPC code and a text that is safe to show.

Bytes become an answer in four steps, and each step has its own errors:

    bytes ──read──▶ body ──parse──▶ In ──predict──▶ Out ──render──▶ bytes
      │              │               │                │
      TooLarge       Malformed       InvalidOption    QueueFull, DeadlineExceeded, Cancelled,
      UnsupportedMedia               NotFound         NotReady, Fault

    FoveaError
    ├── BadInput 400
    │   ├── Malformed 400         the bytes are not what they claim to be
    │   ├── MethodNotAllowed 405  the path exists, but not for this method
    │   ├── TooLarge 413          bytes, pixels or tokens over a stated limit
    │   ├── UnsupportedMedia 415  a content type or file format nobody here reads
    │   └── InvalidOption 422     well formed, but a value is out of range
    ├── Unauthenticated 401
    ├── PermissionDenied 403
    ├── NotFound 404              model, version, job or route
    ├── Conflict 409              the state forbids it (result of a running job, reused idempotency key)
    ├── RateLimited 429           the caller's quota
    ├── QueueFull 429             our queue
    ├── Cancelled 499             the caller went away or asked for it
    ├── Fault 500                 ours; the detail stays in the log
    ├── NotReady 503              no weights, no replica, no queue yet
    ├── DeadlineExceeded 504
    └── StorageFull 507           no room for what would have to be stored: a disk or Redis

Knows nothing about HTTP frameworks or gRPC: `fovea.api.problem` renders an error for each front.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Self


class FoveaError(Exception):
    """An error that a caller may see.

    Args:
        detail: The problem and its cause, in one sentence that is safe to show.
        hint: Advice, in one sentence.
        field: The option, tensor or parameter that is wrong, where there is one.
        retry_after: Seconds after which a retry makes sense, where it does.
    """

    status: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    title: ClassVar[str] = "Internal error"

    def __init_subclass__(cls, *, status: int = 0, grpc: str = "", title: str = "") -> None:
        cls.status, cls.grpc, cls.title = status or cls.status, grpc or cls.grpc, title or cls.title

    def __init__(
        self, detail: str, *, hint: str | None = None, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.field = field
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """The class name as a stable machine-readable word, for example `too_large`."""
        name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class BadInput(FoveaError, status=400, grpc="INVALID_ARGUMENT", title="Bad input"):
    """The request can't be served as it is; sending it again will not help."""


class Malformed(BadInput, title="Malformed input"):
    """The bytes are not what they claim to be: broken JSON, base64, tensor or picture."""


class MethodNotAllowed(BadInput, status=405, grpc="UNIMPLEMENTED", title="Method not allowed"):
    """The path exists, but not for this method; `allowed` lists the methods that it has, where they are known."""

    def __init__(self, detail: str, *, hint: str | None = None, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(detail, hint=hint)
        self.allowed = allowed


class TooLarge(BadInput, status=413, title="Too large"):
    """Bytes, pixels, tokens or batch over a stated limit; the detail names the limit and the value."""


class UnsupportedMedia(BadInput, status=415, title="Unsupported media type"):
    """A content type or file format that nobody here reads; the detail says what was detected."""


class InvalidOption(BadInput, status=422, title="Invalid option"):
    """Well formed, but a value is out of its range; `field` names it."""


class Unauthenticated(FoveaError, status=401, grpc="UNAUTHENTICATED", title="Not authenticated"):
    """No key, an unknown key or an expired one."""


class PermissionDenied(FoveaError, status=403, grpc="PERMISSION_DENIED", title="Not allowed"):
    """A good key without the scope."""


class NotFound(FoveaError, status=404, grpc="NOT_FOUND", title="Not found"):
    """No such model, version, job or route; the detail lists what there is."""


class Conflict(FoveaError, status=409, grpc="FAILED_PRECONDITION", title="Conflict"):
    """The present state forbids it."""


class RateLimited(FoveaError, status=429, grpc="RESOURCE_EXHAUSTED", title="Quota exceeded"):
    """The caller's quota is spent; `retry_after` says until when."""


class QueueFull(FoveaError, status=429, grpc="RESOURCE_EXHAUSTED", title="Queue full"):
    """Our queue is full; `retry_after` estimates when it is not."""


class Cancelled(FoveaError, status=499, grpc="CANCELLED", title="Cancelled"):
    """The caller went away, or asked for it."""


class Fault(FoveaError):
    """Our own failure. The detail is generic; the cause goes to the log under the request id."""


class NotReady(FoveaError, status=503, grpc="UNAVAILABLE", title="Not ready"):
    """Weights not loaded, no replica alive, or no queue to reach."""


class DeadlineExceeded(FoveaError, status=504, grpc="DEADLINE_EXCEEDED", title="Deadline exceeded"):
    """The request's deadline passed before it was done."""

    @classmethod
    def build(cls, *, is_stream: bool = False, is_total: bool = False) -> Self:
        """Build the error for a request, or a stream that paused or as a whole (`is_total`) took too long."""
        job = "send it with `Prefer: respond-async`"
        if not is_stream:
            detail = "The answer took longer than FOVEA_REQUEST_TIMEOUT_S or the caller's own deadline allows."
            return cls(detail, hint=f"Stream the answer where that is offered, {job}, or allow more time.")
        if is_total:
            detail = "The stream took longer than FOVEA_STREAM_TIMEOUT_S or the caller's own deadline allows."
        else:
            detail = "The stream produced nothing new for as long as FOVEA_REQUEST_TIMEOUT_S allows."
        return cls(detail, hint=f"Allow more time, or {job}.")


class StorageFull(FoveaError, status=507, grpc="RESOURCE_EXHAUSTED", title="Storage full"):
    """No room for what would have to be stored: a full disk or a full Redis."""


def by_status(status: int) -> type[FoveaError]:
    """The class that stands for an HTTP status, for clients that turn answers back into exceptions."""
    kinds: tuple[type[FoveaError], ...] = (
        BadInput, Unauthenticated, PermissionDenied, NotFound, Conflict, TooLarge, UnsupportedMedia, InvalidOption,
        RateLimited, Cancelled, NotReady, DeadlineExceeded, StorageFull,
    )  # fmt: skip
    fallback: type[FoveaError] = BadInput if 300 <= status < 500 else Fault
    return next((kind for kind in kinds if kind.status == status), fallback)


@contextmanager
def in_field(name: str) -> Iterator[None]:
    """Errors inside are about this field of the request."""
    try:
        yield
    except FoveaError as error:
        error.field = name
        raise
