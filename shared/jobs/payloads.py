"""Payloads of jobs that are too large for Redis: in the object store by name, deleted with their job.

A name is `<job id>/<part>`; gateway and workers use the same store. All verbs may be repeated without harm.
"""

import asyncio
import time

from fovea.errors import Fault
from shared.storage import ObjectStore


class PayloadStore:
    """Stores payloads under `blobs/` of the object store. Accepted payloads survive a crash."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects.under("blobs")

    async def put(self, name: str, content: bytes) -> None:
        """Store `content` under `name`, durably, visible only when complete; replaces what was there."""
        await asyncio.to_thread(self._objects.put, name, content)

    async def get(self, name: str) -> bytes:
        """The content; `Fault` when it is gone."""
        if (content := await asyncio.to_thread(self._objects.get, name)) is None:
            hint = "Gateway and workers must share FOVEA_OBJECT_STORE, or the folder FOVEA_DATA_DIR."
            raise Fault("The stored body of this job is gone.", hint=hint)
        return content

    async def delete(self, name: str) -> None:
        """Delete one payload; unknown ones are ignored."""
        await asyncio.to_thread(self._objects.delete, name)

    async def delete_job(self, job_id: str) -> None:
        """Delete all payloads of a job."""
        await asyncio.to_thread(self._objects.under(job_id).delete_all)

    async def older_than(self, seconds: float) -> list[str]:
        """Ids of jobs whose newest payload was written at least so long ago."""
        return await asyncio.to_thread(self._older, time.time() - seconds)

    def _older(self, instant: float) -> list[str]:
        newest: dict[str, float] = {}
        for facts in self._objects.list_objects():
            job_id, written = facts.path.partition("/")[0], facts.modified.timestamp()
            newest[job_id] = max(newest.get(job_id, written), written)
        return [job_id for job_id, written in newest.items() if written <= instant]
