"""Batches over the job queue: each request is a job; answers are gathered into files when all jobs are over.

State is looked up when somebody asks, from the jobs themselves, by whichever gateway is asked. Knows no HTTP.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from uuid import uuid4

from fovea.api.batches import Batch, BatchCounts, BatchList, BatchRequest
from fovea.api.job import FINAL
from fovea.errors import Conflict, Fault, FoveaError, NotFound
from services.gateway.batches.batch_file import parse_lines, write_answer, write_failure
from services.gateway.batches.batch_records import BatchEntry, BatchLineOut, BatchRecord, BatchRecords, Lines
from services.gateway.batches.file_store import FileStore, find_page
from services.gateway.policy.caller import INSIDE_PATHS, Caller
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue

_READ_AT_ONCE = 8
"""Answers of one batch that are read at a time."""


class BatchService:
    """Creates batches and says how far they are."""

    def __init__(self, records: BatchRecords, files: FileStore, job_ttl_s: int) -> None:
        """Keep batches in `records` and their answers in `files`; jobs are forgotten after `job_ttl_s`."""
        self._records, self._files, self._ttl_s = records, files, job_ttl_s

    async def create(
        self,
        caller: Caller,
        body: BatchRequest,
        service: str,
        queue: RedisJobQueue,
        *,
        admit: Callable[[int], Awaitable[None]],
        audit: Callable[[], None] = lambda: None,
        models: Mapping[str, str] = MappingProxyType({}),
    ) -> Batch:
        """Queue a job for each request of the caller's input file, for `service` unless `models` has that of its model.

        `admit` is called with the number of requests, and raises where they are too many; below zero, where none is
        run. `audit` is called once the jobs are queued, if one of them steers a model or looks inside.

        Raises:
            NotFound: There is no such file.
            InvalidOption: It holds no requests that can be run.
            QueueFull: The queue does not take all of them; none is run then.
            RateLimited: The tenant's files hold as many bytes as they may, or so many requests are not left to it.
        """
        tenant = caller.tenant
        data = await asyncio.to_thread(self._files.read, tenant, body.input_file_id)
        lines = await asyncio.to_thread(parse_lines, data, body.endpoint)
        now, batch_id = int(time.time()), f"batch-{uuid4().hex}"
        await asyncio.to_thread(self._files.check_room, tenant)
        await admit(len(lines))
        headers = {"content-type": "application/json", "accept": "application/json", **caller.job_headers}
        entries = list[BatchEntry]()
        batch = Batch(
            id=batch_id, endpoint=body.endpoint, input_file_id=body.input_file_id, metadata=body.metadata,
            completion_window=body.completion_window, status="in_progress", created_at=now, in_progress_at=now,
            expires_at=now + self._ttl_s, request_counts=BatchCounts(total=len(lines)),
        )  # fmt: skip
        try:
            for number, line in enumerate(lines):
                payload = Payload(
                    models.get(line.model, service), body.endpoint, line.body, headers, priority=-1, tenant=tenant
                )
                job, _ = await queue.submit(payload, f"{batch_id}-{number}")
                entries.append(BatchEntry(custom_id=line.custom_id, job=job.id))
            if body.endpoint.startswith(INSIDE_PATHS) or any(line.may_steer for line in lines):
                audit()
            await asyncio.to_thread(self._records.add, tenant, BatchRecord(batch=batch, entries=entries))
        except FoveaError:
            with contextlib.suppress(FoveaError):  # why the batch is not accepted matters more
                await _cancel_all(entries, tenant, queue)
            await admit(-len(lines))
            raise
        return batch

    async def get(self, tenant: str, batch_id: str, queue: RedisJobQueue) -> Batch:
        """The batch as it stands; raises NotFound."""
        record, lines = await asyncio.to_thread(self._records.load, tenant, batch_id)
        if record.batch.status != "in_progress":
            return record.batch
        lines = await self._update_lines(tenant, record, lines, queue)
        if len(lines) == len(record.entries):
            return await self._end(tenant, record, lines)
        return _count(record, lines)

    async def cancel(self, tenant: str, batch_id: str, queue: RedisJobQueue) -> Batch:
        """Cancel what is still running. Raises NotFound: there is no such batch; Conflict: it is over."""
        if (await self.get(tenant, batch_id, queue)).status != "in_progress":
            raise Conflict("The batch is over.")
        record, _ = await asyncio.to_thread(self._records.load, tenant, batch_id)
        await asyncio.to_thread(self._records.cancel, tenant, batch_id)
        await _cancel_all(record.entries, tenant, queue)
        return await self.get(tenant, batch_id, queue)

    async def list_batches(self, tenant: str, limit: int, after: str | None = None) -> BatchList:
        """The tenant's batches as they were when somebody last asked for each, newest first; `after` one of them."""
        ids = await asyncio.to_thread(self._records.list_ids, tenant)
        ids = ids[find_page(ids, after) :]
        found = await asyncio.gather(*(self._load(tenant, batch_id) for batch_id in ids[:limit]))
        return BatchList(data=found, has_more=len(ids) > limit)

    async def _load(self, tenant: str, batch_id: str) -> Batch:
        """A batch without a look at its jobs."""
        record, lines = await asyncio.to_thread(self._records.load, tenant, batch_id)
        return _count(record, lines) if record.batch.status == "in_progress" else record.batch

    async def _update_lines(self, tenant: str, record: BatchRecord, lines: Lines, queue: RedisJobQueue) -> Lines:
        """All lines there are, with new ones stored, because jobs are forgotten."""
        pending = [entry for entry in record.entries if entry.job not in lines]
        turns = asyncio.Semaphore(_READ_AT_ONCE)
        found = await asyncio.gather(*(_read_line(entry, tenant, queue, turns) for entry in pending))
        new = {entry.job: line for entry, line in zip(pending, found, strict=True) if line is not None}
        if new:
            lines = lines | new
            await asyncio.to_thread(self._records.store_lines, tenant, record.batch.id, lines)
        return lines

    async def _end(self, tenant: str, record: BatchRecord, lines: Lines) -> Batch:
        """Write the files of a batch whose jobs are all over, then how it ended."""
        batch, rows = _count(record, lines), [lines[entry.job] for entry in record.entries]
        batch.output_file_id = await self._write_file(tenant, batch.id, "output", [r for r in rows if not r.has_failed])
        batch.error_file_id = await self._write_file(tenant, batch.id, "error", [r for r in rows if r.has_failed])
        if await asyncio.to_thread(self._records.is_cancelled, tenant, batch.id):
            batch.status, batch.cancelled_at = "cancelled", int(time.time())
        else:
            batch.status, batch.completed_at = "completed", int(time.time())
        return await asyncio.to_thread(self._records.end, tenant, batch)

    async def _write_file(self, tenant: str, batch_id: str, kind: str, rows: Sequence[BatchLineOut]) -> str | None:
        if not rows:
            return None
        name, data = f"{batch_id}_{kind}.jsonl", "".join(row.line for row in rows).encode()
        # The id follows from the batch: of two gateways that end it at once, both write the same file.
        file_id = f"file-{sha256(name.encode()).hexdigest()[:32]}"
        return (await asyncio.to_thread(self._files.put, tenant, file_id, name, "batch_output", data)).id


def _count(record: BatchRecord, lines: Lines) -> Batch:
    failed = sum(line.has_failed for line in lines.values())
    counts = BatchCounts(total=len(record.entries), completed=len(lines) - failed, failed=failed)
    return record.batch.model_copy(update={"request_counts": counts})


async def _cancel_all(entries: Sequence[BatchEntry], tenant: str, queue: RedisJobQueue) -> None:
    """Cancel the jobs that are still known and not over; raises the first failure after trying all."""
    told = await asyncio.gather(*(queue.cancel(entry.job, tenant) for entry in entries), return_exceptions=True)
    for error in told:
        if isinstance(error, BaseException) and not isinstance(error, NotFound):
            raise error


async def _read_line(
    entry: BatchEntry, tenant: str, queue: RedisJobQueue, turns: asyncio.Semaphore
) -> BatchLineOut | None:
    """The line of a request whose job is over, or is not known any more; None while it is not."""

    def fail(code: str, message: str) -> BatchLineOut:
        return BatchLineOut(line=write_failure(entry.custom_id, code, message).decode(), has_failed=True)

    try:
        async with turns:
            job = await queue.get(entry.job, tenant)
            if job.status not in FINAL:
                return None
            if job.status == "cancelled":
                return fail("batch_cancelled", "The batch was cancelled.")
            result = await queue.result(entry.job, tenant)
        line = await asyncio.to_thread(write_answer, entry.custom_id, entry.job, result)
        return BatchLineOut(line=line.decode(), has_failed=result.status >= 400)
    except NotFound:
        return fail("batch_expired", "The answer was forgotten before it was fetched.")
    except (Conflict, Fault) as error:  # a Fault: the stored answer is gone
        return fail(error.code, error.detail)
