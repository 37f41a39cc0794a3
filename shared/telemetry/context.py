"""Request context: who is being served, which every log line, metric and span of one request carries."""

import os
import random
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """The caller that is being served.

    Attributes:
        traceparent: W3C trace parent of what is called from here; in a batch those of all members, with commas between.
        parent: The `traceparent` that came with the request, if it was well formed.
    """

    request_id: str = ""
    service: str = ""
    model: str = ""
    traceparent: str = ""
    parent: str = ""


_ids = random.Random()  # no secrets; the global generator is the user's, who may have seeded it
os.register_at_fork(after_in_child=_ids.seed)
_context: ContextVar[Context] = ContextVar("fovea_context", default=Context())  # noqa: B039


def context() -> Context:
    """The context of the request that this task or thread serves."""
    return _context.get()


class bind:  # noqa: N801  # used like a function; a class costs a third of a generator, several times per request
    """Fill fields of the context for the length of a block, for example `with bind(model="pranet"):`."""

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: str) -> None:
        self._fields = fields

    def __enter__(self) -> Context:
        now = _context.get()
        filled = Context(
            self._fields.get("request_id", now.request_id),
            self._fields.get("service", now.service),
            self._fields.get("model", now.model),
            self._fields.get("traceparent", now.traceparent),
        )
        self._token = _context.set(filled)
        return filled

    def __exit__(self, *_: object) -> None:
        _context.reset(self._token)


def fresh_context(request_id: str | None, traceparent_header: str | None, service: str) -> Context:
    """The context of a new request: ids that came with it are kept when well formed, made otherwise."""
    rid = request_id if request_id and len(request_id) <= 128 and request_id.isprintable() else _hex(8)
    parent = traceparent_header if traceparent_header and is_traceparent(traceparent_header) else ""
    return Context(request_id=rid, service=service, traceparent=traceparent(parent), parent=parent)


def traceparent(incoming: str | None) -> str:
    """A W3C `traceparent` for the next hop: the incoming trace with a span of ours, or a new trace."""
    if incoming and is_traceparent(incoming):
        _, trace, _, flags = incoming.strip().split("-")
        return f"00-{trace}-{_hex(8)}-{flags}"
    return f"00-{_hex(16)}-{_hex(8)}-01"


def is_traceparent(text: str) -> bool:
    """Whether a header is a W3C trace parent: version, trace, span and flags, in lower-case hex."""
    parts = text.strip().split("-")
    hexed = all(p and all(c in "0123456789abcdef" for c in p) for p in parts)
    good = len(parts) == 4 and hexed and [len(p) for p in parts] == [2, 32, 16, 2] and parts[0] != "ff"
    return good and set(parts[1]) != {"0"} and set(parts[2]) != {"0"}


def _hex(size: int) -> str:
    """Random bytes as hex. Ids are no secrets, and asking the system for each costs 40 µs under load."""
    return f"{_ids.getrandbits(8 * size):0{2 * size}x}"
