"""Job queue contract: at-least-once work with progress, cancel, retry, dead letters and results that expire.

A job is a POST that is answered later: service, path, headers and body. The worker returns status, content type and
body, the same bytes that the caller would have had at once. Effects are keyed by job id, so that a second delivery does
no harm.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fovea.api.job import Job


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


TRANSFER_HEADERS = frozenset({"content-length", "content-type", "connection", "date", "server", "transfer-encoding"})
"""Response headers of one transfer, or with a field of their own in `Result`."""


class Ticket(Protocol):
    """The handle of a running job on its worker: progress out, cancellation in."""

    id: str
    attempt: int

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Publish how far the work is."""

    async def wait_until_cancelled(self) -> None:
        """Return when the job is cancelled; wait for ever otherwise."""


Handler = Callable[[Payload, Ticket], Awaitable[Result]]
"""Runs one job. A 4xx, answered or raised as an error of `fovea.errors`, fails it for good; 408, 425, 429, 499, 5xx
and any other error are tried again."""


class JobQueue(Protocol):
    """The gateway's side of the queue. Every method raises `NotReady` while the queue can't be reached."""

    async def submit(self, payload: Payload, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Accept a job; return it and whether it is new. When this returns, the job survives the death of any process.

        A key seen before with the same request returns the first job, with another one it raises `Conflict`. Raises
        QueueFull if too many jobs wait, RateLimited if the tenant's hold too many bytes, StorageFull if the storage is
        full.
        """

    async def get(self, job_id: str, tenant: str) -> Job:
        """The job as it stands; `NotFound` for unknown, expired and other tenants' jobs."""

    async def recent(self, tenant: str, limit: int = 50) -> list[Job]:
        """The tenant's jobs, newest first."""

    async def result(self, job_id: str, tenant: str) -> Result:
        """The answer of a finished job; `Conflict` while it is not finished."""

    async def cancel(self, job_id: str, tenant: str) -> Job:
        """Cancel, also while running; idempotent; a finished job is left as it is."""

    async def delete(self, job_id: str, tenant: str) -> Job:
        """Cancel an unfinished job; forget a finished one with its request and answer. Returns its last state."""

    async def retry(self, job_id: str, tenant: str) -> Job:
        """Queue a failed, dead or cancelled job again; `Conflict` otherwise."""

    def events(self, job_id: str, tenant: str) -> AsyncIterator[Job]:
        """The job now and after every change, ending with its final state."""

    async def counts(self, service: str) -> Counts:
        """Jobs that wait and jobs that run; a worker must not be scaled away while one runs."""

    async def dead(self, tenant: str, limit: int = 50) -> list[Job]:
        """Dead letters, newest first."""
