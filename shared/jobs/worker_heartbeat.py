"""Worker heartbeat: the record that a worker renews with the leases of its jobs."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field

SILENT_S = 5.0
"""Seconds without a renewal after which a worker no longer counts as alive (the replica records' rule)."""

FORGET_S = 3600.0
"""Seconds after which the record of a silent worker is removed."""


class Worker(BaseModel):
    """One worker process."""

    model_config = ConfigDict(frozen=True)

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
