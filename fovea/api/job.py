"""Jobs on the wire: any POST sent with `Prefer: respond-async`, and what became of it."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]

FINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job does not leave (a retry makes it queued again)."""


class Job(BaseModel, extra="allow"):
    """A request that is answered later."""

    id: str
    service: str
    path: str = Field(description="The POST that is run, for example `/v1/segment`.")
    status: JobStatus
    progress: float = Field(0.0, ge=0, le=1)
    note: str | None = Field(None, description="Its present step, for people.")
    position: int | None = Field(None, description="Jobs ahead in the queue; null unless queued.")
    attempts: int = Field(0, description="Deliveries so far.")
    dead: bool = Field(False, description="Failed for good after the last attempt: a dead letter until retried.")
    error: dict[str, object] | None = Field(None, description="The problem, when failed.")
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    expires: datetime | None = Field(None, description="When job and result are forgotten.")


class JobList(BaseModel):
    """Newest first."""

    jobs: list[Job]
    has_more: bool = Field(False, description="Whether there is a page after the last id.")
