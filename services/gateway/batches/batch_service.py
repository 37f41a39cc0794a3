"""Batches over the job queue: each request is a job; answers are gathered into files when all jobs are over.

State is looked up when somebody asks, from the jobs themselves. Knows jobs and files; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel

from services.gateway.batches.batch_file import BatchLine, parse_lines, write_answer, write_failure
from services.gateway.batches.file_store import FileStore
from services.gateway.batches.tenant_folder import TenantFolder
from shared.api.batches import Batch, BatchCounts, BatchRequest
from shared.api.job import FINAL
from shared.errors import Conflict, FoveaError, NotFound
from shared.jobs.queue import JobQueue, Payload

__all__ = ["BatchService"]


class _Entry(BaseModel):
    """One request of a batch: its job, and its line once that is over."""

    custom_id: str
    job: str
    line: str | None = None
    has_failed: bool = False


class _Record(BaseModel):
    """A batch as it is stored."""

    batch: Batch
    entries: list[_Entry]


class BatchService:
    """Creates batches and says how far they are."""

    def __init__(self, root: Path, files: FileStore, job_ttl_s: int) -> None:
        """Keep records below `root`; jobs are forgotten after `job_ttl_s`."""
        self._folder, self._files, self._ttl_s = TenantFolder(root, "batch"), files, job_ttl_s
        self._locks: dict[str, asyncio.Lock] = {}

    async def create(self, tenant: str, body: BatchRequest, service: str, queue: JobQueue) -> Batch:
        """Queue a job for each request of the input file.

        Raises:
            NotFound: There is no such file.
            InvalidOption: It holds no requests that can be run.
            QueueFull: The queue does not take all of them; none is run then.
        """
        data = await asyncio.to_thread(self._files.read, tenant, body.input_file_id)
        lines, now, batch_id = parse_lines(data, body.endpoint), int(time.time()), f"batch-{uuid4().hex}"
        entries = await _submit_all(lines, batch_id, tenant, service, queue)
        batch = Batch(
            id=batch_id,
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            status="in_progress",
            created_at=now,
            in_progress_at=now,
            expires_at=now + self._ttl_s,
            request_counts=BatchCounts(total=len(entries)),
            metadata=body.metadata,
        )
        await self._store(tenant, _Record(batch=batch, entries=entries))
        return batch

    async def get(self, tenant: str, batch_id: str, queue: JobQueue) -> Batch:
        """The batch as it stands; raises NotFound."""
        async with self._locks.setdefault(batch_id, asyncio.Lock()):
            record = await self._load(tenant, batch_id)
            if record.batch.status == "in_progress":
                await asyncio.gather(*(_update(entry, tenant, queue) for entry in record.entries if entry.line is None))
                await self._close_if_over(tenant, record)
                await self._store(tenant, record)
        return record.batch

    async def cancel(self, tenant: str, batch_id: str, queue: JobQueue) -> Batch:
        """Cancel what is still running.

        Raises:
            NotFound: There is no such batch.
            Conflict: It is over.
        """
        if (await self.get(tenant, batch_id, queue)).status != "in_progress":
            raise Conflict("The batch is over.")
        record = await self._load(tenant, batch_id)
        await asyncio.gather(*(queue.cancel(e.job, tenant) for e in record.entries if e.line is None))
        await self.get(tenant, batch_id, queue)
        record = await self._load(tenant, batch_id)
        record.batch.status, record.batch.cancelled_at = "cancelled", int(time.time())
        await self._store(tenant, record)
        return record.batch

    async def list_batches(self, tenant: str, limit: int) -> list[Batch]:
        """The tenant's batches as they were when somebody last asked for each, newest first."""
        ids = (await asyncio.to_thread(self._folder.list_ids, tenant))[:limit]
        found = [(await self._load(tenant, batch_id)).batch for batch_id in ids]
        return sorted(found, key=lambda batch: -batch.created_at)

    async def _close_if_over(self, tenant: str, record: _Record) -> None:
        """Count what is over; when all is, write the files."""
        batch, over = record.batch, [e for e in record.entries if e.line is not None]
        failed = [entry for entry in over if entry.has_failed]
        batch.request_counts.completed, batch.request_counts.failed = len(over) - len(failed), len(failed)
        if len(over) < len(record.entries):
            return
        good = [entry for entry in over if not entry.has_failed]
        batch.output_file_id = await self._write_file(tenant, f"{batch.id}_output.jsonl", good)
        batch.error_file_id = await self._write_file(tenant, f"{batch.id}_error.jsonl", failed)
        batch.status, batch.completed_at = "completed", int(time.time())

    async def _write_file(self, tenant: str, name: str, entries: Sequence[_Entry]) -> str | None:
        if not entries:
            return None
        data = "".join(entry.line or "" for entry in entries).encode()
        return (await asyncio.to_thread(self._files.add, tenant, name, "batch_output", data)).id

    async def _load(self, tenant: str, batch_id: str) -> _Record:
        data = await asyncio.to_thread(self._folder.read, tenant, batch_id, ".json")
        return _Record.model_validate_json(data)

    async def _store(self, tenant: str, record: _Record) -> None:
        data = record.model_dump_json().encode()
        await asyncio.to_thread(self._folder.write, tenant, record.batch.id, ".json", data)


async def _submit_all(
    lines: Sequence[BatchLine], batch_id: str, tenant: str, service: str, queue: JobQueue
) -> list[_Entry]:
    entries: list[_Entry] = []
    headers = {"content-type": "application/json", "accept": "application/json", "x-fovea-tenant": tenant}
    try:
        for number, line in enumerate(lines):
            body = json.dumps(line.body).encode()
            payload = Payload(service, line.url, body, headers, priority=-1, tenant=tenant)
            job, _ = await queue.submit(payload, f"{batch_id}-{number}")
            entries.append(_Entry(custom_id=line.custom_id, job=job.id))
    except FoveaError:
        await asyncio.gather(*(queue.cancel(entry.job, tenant) for entry in entries), return_exceptions=True)
        raise
    return entries


async def _update(entry: _Entry, tenant: str, queue: JobQueue) -> None:
    """Write the line of a request whose job is over, or is not known any more."""
    try:
        job = await queue.get(entry.job, tenant)
        if job.status not in FINAL:
            return
        if job.status == "cancelled":
            line, entry.has_failed = write_failure(entry.custom_id, "batch_cancelled", "The batch was cancelled."), True
        else:
            result = await queue.result(entry.job, tenant)
            line, entry.has_failed = write_answer(entry.custom_id, entry.job, result), result.status >= 400
    except NotFound:
        line = write_failure(entry.custom_id, "batch_expired", "The answer was forgotten before it was fetched.")
        entry.has_failed = True
    except Conflict as error:
        line, entry.has_failed = write_failure(entry.custom_id, error.code, error.detail), True
    entry.line = line.decode()
