"""Job queue contract: at-least-once work with progress, cancel, retry, dead letters and results that expire.

A job is a POST that is answered later: service, path, headers and body. The worker returns status, content type and
body, the same bytes that the caller would have had at once. Effects are keyed by job id: a second delivery is harmless.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pydantic import BaseModel, Field


class Counts(NamedTuple):
    """Jobs of a service."""

    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class Payload:
    """The request to run. `headers` holds only what the service needs (content type, accept, tenant, trace)."""

    service: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    tenant: str = "local"


@dataclass(frozen=True, slots=True)
class Result:
    """The answer, byte for byte."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_answer(cls, status: int, headers: Mapping[str, str], body: bytes) -> Result:
        """The result that an HTTP answer is, without the headers of its transfer."""
        kept = {name: value for name, value in headers.items() if name not in _TRANSFER_HEADERS}
        return cls(status, headers.get("content-type", "application/octet-stream"), body, kept)


# Response headers of one transfer, or with a field of their own in `Result`.
_TRANSFER_HEADERS = frozenset({"content-length", "content-type", "connection", "date", "server", "transfer-encoding"})


class Ticket(Protocol):
    """The handle of a running job on its worker: progress out, cancellation in."""

    id: str
    attempt: int

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Publish how far the work is."""

    async def wait_until_cancelled(self) -> None:
        """Return when the job is cancelled; wait for ever otherwise."""


SILENT_S = 5.0
"""Seconds without a renewal after which a worker no longer counts as alive (the replica records' rule)."""

Handler = Callable[[Payload, Ticket], Awaitable[Result]]
"""Runs one job. A 4xx, answered or raised as an error of `fovea.errors`, fails it for good; 408, 425, 429, 499, 5xx
and any other error are tried again."""


class Worker(BaseModel, frozen=True):
    """The record that a worker renews with the leases of its jobs."""

    id: str
    service: str
    host: str
    pid: int
    started: float = Field(description="Unix time of its start.")
    seen: float = Field(description="Unix time of the last renewal.")
    running: tuple[str, ...] = Field((), description="Ids of the jobs that it runs.")

    @property
    def is_alive(self) -> bool:
        """Whether it renewed lately."""
        return time.time() - self.seen < SILENT_S
