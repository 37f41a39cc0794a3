"""Errors of the HTTP front, and unexpected exceptions made safe to show."""

from __future__ import annotations

from shared import telemetry
from shared.errors import BadInput, Fault, FoveaError

__all__ = ["NotAcceptable", "TooSlow", "to_safe_error"]


class NotAcceptable(BadInput):
    """No form of the answer fits the `Accept` header; the detail lists what it can."""

    status, title = 406, "Not acceptable"


class TooSlow(BadInput):
    """The body stopped arriving."""

    status, grpc, title = 408, "DEADLINE_EXCEEDED", "Request timeout"


def to_safe_error(error: BaseException, what: str) -> FoveaError:
    """A FoveaError as it is; any other exception is logged, and becomes a `Fault` without its text.

    Args:
        error: What was raised.
        what: What failed, as the subject of a sentence: `The model pranet`.
    """
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("failed", what=what, exc_info=error)
    return Fault(f"{what} failed on this request.", hint="The log of the service says why, under the request id.")
