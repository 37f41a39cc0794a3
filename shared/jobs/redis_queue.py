"""The job queue on Redis, for the gateway; `consumer.py` is the workers' side.

Each change is one verb of `states.lua`: it happens whole or not at all.
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from fovea.api.job import FINAL, Job
from fovea.errors import Conflict, NotFound, QueueFull, RateLimited
from shared.jobs import codec, redis_keys
from shared.jobs.payloads import PayloadStore
from shared.jobs.queue import Counts, Payload, Result, Worker
from shared.jobs.redis_client import ChangeListener, RedisClient, retry_until_connected, translate_redis_errors
from shared.settings import Settings
from shared.storage import ObjectStore, open_object_store

_ID = re.compile(r"[0-9a-f]{32}")
# Longest time for which `events` trusts the subscription alone; queue positions change without a message.
_EVENTS_POLL_S = 2.0


class RedisJobQueue:
    """The gateway's side of the queue. Make one per process, in its event loop, and `close` it there.

    Every method raises `NotReady` while the queue can't be reached.
    """

    def __init__(self, url: str, settings: Settings, objects: ObjectStore | None = None) -> None:
        """Use the Redis at `url`; large bodies go to `objects`, by default the store of the settings."""
        self._settings = settings
        self._redis = RedisClient(url)
        self._payloads = PayloadStore(objects or open_object_store(settings))
        self._changes = ChangeListener(self._redis, redis_keys.key("changed"))

    async def submit(self, payload: Payload, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Accept a job; return it and whether it is new. When this returns, the job survives the death of any process.

        A key seen before with the same request returns the first job, with another one it raises `Conflict`. Raises
        QueueFull if too many jobs wait, RateLimited if the tenant's hold too many bytes, StorageFull.
        """
        job_id = secrets.token_hex(16)
        inline = len(payload.body) <= self._settings.job_inline_max_bytes
        if not inline:
            await self._payloads.put(f"{job_id}/request", payload.body)
        where = payload.tenant, payload.service, redis_keys.stream_of(payload.priority)
        sizes = self._settings.job_queue_max, codec.size_of(payload), self._settings.job_quota_bytes
        name = redis_keys.idempotency_name(payload.tenant, idempotency_key) if idempotency_key else ""
        stored = codec.fingerprint(payload), *codec.encode_request(payload, inline)
        how, known = await self._redis.run_script("submit", job_id, *where, *sizes, name, *stored)
        if how != b"new" and not inline:
            # Not after an exception: then the job may have been accepted, and the sweep finds what was not.
            await self._payloads.delete_job(job_id)
        if how == b"full":
            raise _queue_full(payload.service, int(known))
        if how == b"quota":
            raise _over_quota(int(known), self._settings.job_quota_bytes)
        if how == b"conflict":
            hint = "Send a new Idempotency-Key with a new request."
            raise Conflict("This idempotency key was used for another request.", hint=hint)
        return await self.get(known.decode(), payload.tenant), how == b"new"

    async def get(self, job_id: str, tenant: str) -> Job:
        """The job as it stands; `NotFound` for unknown, expired and other tenants' jobs."""
        found = await self._redis.run_script("look", _check_id(job_id), tenant, *codec.JOB_FIELDS)
        if found is None:
            raise _unknown_job(job_id)
        return codec.decode_job(job_id, *found)

    async def recent(self, tenant: str, limit: int = 50, after: str | None = None) -> list[Job]:
        """The tenant's jobs, newest first; those behind the job `after`, or `NotFound` where the list lacks it."""
        return await self._list("tenant", tenant, limit, after)

    async def dead(self, tenant: str, limit: int = 50, after: str | None = None) -> list[Job]:
        """Dead letters, as `recent`."""
        return await self._list("dead", tenant, limit, after)

    async def result(self, job_id: str, tenant: str) -> Result:
        """The answer of a finished job; `Conflict` while it is not finished."""
        found = await self._redis.run_script("look", _check_id(job_id), tenant, *codec.JOB_FIELDS, *codec.ANSWER_FIELDS)
        if found is None:
            raise _unknown_job(job_id)
        rank, values = found
        job = codec.decode_job(job_id, rank, values[: len(codec.JOB_FIELDS)])
        if job.status not in FINAL:
            raise Conflict(f"The job is {job.status}: it has no result yet.", hint="Wait, or watch its events.")
        answer = values[len(codec.JOB_FIELDS) :]
        *_, body, blob = answer
        if body is None and blob is None:
            return codec.build_problem_answer(job)
        return codec.decode_answer(answer, body if blob is None else await self._payloads.get(blob.decode()))

    async def cancel(self, job_id: str, tenant: str) -> Job:
        """Cancel, also while running; idempotent; a finished job is left as it is."""
        ttl_s = min(self._settings.job_ttl_s, self._settings.job_cancelled_ttl_s)
        if await self._redis.run_script("cancel", _check_id(job_id), tenant, ttl_s * 1000) == b"missing":
            raise _unknown_job(job_id)
        return await self.get(job_id, tenant)

    async def delete(self, job_id: str, tenant: str) -> Job:
        """Cancel an unfinished job; forget a finished one with its request and answer. Returns its last state."""
        job = await self.get(job_id, tenant)
        if job.status not in FINAL:
            return await self.cancel(job_id, tenant)
        await self._redis.run_script("delete", job_id, tenant)
        return job

    async def retry(self, job_id: str, tenant: str, caller: Mapping[str, str] | None = None) -> Job:
        """Queue a failed, dead or cancelled job again, with a caller's headers (see Caller); `Conflict` otherwise."""
        limit, headers = self._settings.job_queue_max, json.dumps(dict(caller or {}))
        how = await self._redis.run_script("retry", _check_id(job_id), tenant, limit, headers)
        if how == b"missing":
            raise _unknown_job(job_id)
        job = await self.get(job_id, tenant)
        if how == b"full":
            raise _queue_full(job.service, limit)
        if how != b"again":
            detail = f"The job is {how.decode()}: only a failed or cancelled job can be tried again."
            raise Conflict(detail, hint="Submit the request again for a new job.")
        return job

    async def events(self, job_id: str, tenant: str) -> AsyncIterator[Job]:
        """The job now and after every change, ending with its final state."""
        with self._changes.watch(job_id) as changed:
            job = await self.get(job_id, tenant)
            yield job
            while job.status not in FINAL:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_EVENTS_POLL_S):
                        await changed.wait()
                changed.clear()
                previous, job = job, await retry_until_connected(lambda: self.get(job_id, tenant))
                if job != previous:
                    yield job

    async def counts(self, service: str) -> Counts:
        """Jobs that wait and jobs that run; a worker must not be scaled away while one runs."""
        return Counts(*await self._redis.run_script("counts", service))

    async def workers(self, service: str) -> list[Worker]:
        """The workers that are alive."""
        with translate_redis_errors():
            rows: dict[bytes, bytes] = await self._redis.client.hgetall(redis_keys.key("workers", service))
        return [worker for row in rows.values() if (worker := Worker.model_validate_json(row)).is_alive]

    async def close(self) -> None:
        """Close the subscription and the connections."""
        await self._changes.close()
        await self._redis.close()

    async def _list(self, kind: str, tenant: str, limit: int, after: str | None) -> list[Job]:
        most = max(1, min(limit, 1000))
        found = await self._redis.run_script("list", kind, tenant, most, after or "", *codec.JOB_FIELDS)
        if found is None:
            hint = "Give the last id of the page before; it may have expired."
            raise NotFound(f"The list has no job {after!r:.80}.", hint=hint, field="after")
        return [codec.decode_job(job_id.decode(), *row) for job_id, row in found]


def _check_id(job_id: str) -> str:
    """Refuse an id of another form before it becomes part of a key or a path."""
    if not _ID.fullmatch(job_id):
        raise _unknown_job(job_id)
    return job_id


def _unknown_job(job_id: str) -> NotFound:
    hint = "It may have expired; `GET /v1/jobs` lists the jobs there are."
    return NotFound(f"There is no job {job_id[:64]!r}.", hint=hint)


def _over_quota(held: int, quota: int) -> RateLimited:
    detail = f"Your jobs hold {held:,} bytes of at most {quota:,}: their requests and answers."
    return RateLimited(detail, hint="Delete finished jobs (DELETE /v1/jobs/{id}), or wait until they expire.")


def _queue_full(service: str, depth: int) -> QueueFull:
    return QueueFull(f"{depth} jobs already wait for {service}.", hint="Try again in a moment.", retry_after=5)
