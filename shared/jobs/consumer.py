"""Queue consumer: takes jobs for one worker, renews its leases, and records progress and outcomes.

Every write names its attempt, so a worker that lost a job changes nothing.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fovea.errors import RateLimited
from shared.jobs import codec, redis_keys
from shared.jobs.payloads import PayloadStore
from shared.jobs.queue import Payload, Result, Worker
from shared.jobs.redis_client import ChangeListener, RedisClient, translate_redis_errors
from shared.settings import Settings
from shared.storage import ObjectStore, open_object_store

Attempt = tuple[str, int]
"""A job's id and the number of one attempt at it: what a lease, progress and an outcome belong to."""

_BLOCK_MS = 1000  # longest blocking read; so often an idle worker looks for jobs of dead workers
_SWEEP_BATCH = 100
_FORGET_S = 3600.0  # after which the record of a silent worker is removed
_MIN_ORPHAN_AGE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt at one job. `attempt` is its fence: it grows with each delivery and is never used again."""

    id: str
    attempt: int
    tries: int
    service: str
    path: str
    tenant: str
    headers: Mapping[str, str]
    priority: int
    body: bytes | None
    """None when it is in the object store."""

    @property
    def key(self) -> Attempt:
        """Id of this delivery attempt: a worker can receive the same job twice."""
        return self.id, self.attempt


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """No job is there: the last entry of each stream, and when a delayed job is due (milliseconds from now, or −1)."""

    last: tuple[str, ...]
    due_ms: int


class QueueConsumer:
    """The jobs of one service, for one worker process. Make it in the worker's event loop and `close` it there."""

    def __init__(self, url: str, service: str, settings: Settings, objects: ObjectStore | None = None) -> None:
        """Use the Redis at `url`; large bodies are in `objects`, by default the store of the settings."""
        self.service = service
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._settings = settings
        self._redis = RedisClient(url)
        self._payloads = PayloadStore(objects or open_object_store(settings))
        self._started = time.time()
        self._limits = settings.job_max_attempts, settings.job_dead_letter_max
        self.stops = ChangeListener(self._redis, redis_keys.key("stop", service))
        """Wakes when a running job of this service was cancelled."""

    async def take(self, *, reclaim: bool) -> Delivery | NothingToDo:
        """Take the next job; `reclaim` also takes jobs whose workers are silent for longer than the lease."""
        lease = str(int(self._settings.job_lease_s * 1000)) if reclaim else ""
        how, *rest = await self._redis.run_script(
            "take", self.service, self.consumer, lease, *self._limits, *codec.REQUEST_FIELDS
        )
        if how == b"none":
            return NothingToDo(tuple(entry.decode() for entry in rest[1]), int(rest[0]))
        return _delivery(*rest)

    async def wait(self, idle: NothingToDo) -> None:
        """Return when a job may be there: at once when one arrived since `idle`, in any case within a second."""
        names = [redis_keys.key("stream", f"{self.service}:{level}") for level in redis_keys.LEVELS]
        block_ms = _BLOCK_MS if idle.due_ms < 0 else max(1, min(_BLOCK_MS, idle.due_ms))
        with translate_redis_errors():
            await self._redis.client.xread(dict(zip(names, idle.last, strict=True)), count=1, block=block_ms)

    async def payload(self, delivery: Delivery) -> Payload:
        """The request of a delivery; `Fault` when its stored body is gone."""
        body = await self._payloads.get(f"{delivery.id}/request") if delivery.body is None else delivery.body
        return Payload(delivery.service, delivery.path, body, delivery.headers, delivery.priority, delivery.tenant)

    async def renew(self, attempts: Collection[Attempt]) -> set[Attempt]:
        """Renew the leases of `attempts` and this worker's record; return the attempts that have lost their job."""
        record = Worker(
            id=self.consumer, service=self.service, host=socket.gethostname(), pid=os.getpid(), started=self._started,
            seen=time.time(), running=tuple(dict.fromkeys(job_id for job_id, _ in attempts)),
        )  # fmt: skip
        pairs = [part for attempt in attempts for part in attempt]
        lost = await self._redis.run_script("renew", self.service, self.consumer, record.model_dump_json(), *pairs)
        return {(job_id.decode(), int(number)) for job_id, number in lost}

    async def progress(self, delivery: Delivery, fraction: float, note: str | None) -> None:
        """Publish the progress of a job; ignored once the job is lost."""
        await self._change("progress", delivery, f"{fraction:.4f}", note or "")

    async def succeed(self, delivery: Delivery, result: Result) -> bool:
        """Record the answer; False when the job was taken from this attempt, whose answer is then dropped."""
        answer: tuple[str, bytes | str] = ("answer", result.body)
        if len(result.body) > self._settings.job_inline_max_bytes:
            answer = ("answer_blob", f"{delivery.id}/answer-{delivery.attempt}")
            await self._payloads.put(str(answer[1]), result.body)
        facts = self._settings.job_ttl_s * 1000, len(result.body), *codec.encode_answer(result), *answer
        is_taken = await self._change("succeed", delivery, *facts)
        if not is_taken and answer[0] == "answer_blob":
            await self._payloads.delete(str(answer[1]))
        elif is_taken and delivery.body is None:
            await self._payloads.delete(f"{delivery.id}/request")
        return is_taken

    async def fail(self, delivery: Delivery, outcome: Result | BaseException) -> bool:
        """Fail for good: trying again would not help. False when the job was taken from this attempt."""
        answer: list[str | bytes | int] = []
        if isinstance(outcome, Result) and len(outcome.body) <= self._settings.job_inline_max_bytes:
            answer = [*codec.encode_answer(outcome), "answer", outcome.body]
        size = len(outcome.body) if isinstance(outcome, Result) and answer else 0
        problem = codec.encode_problem(outcome)
        return await self._change("fail", delivery, self._settings.job_ttl_s * 1000, size, problem, *answer)

    async def retry(self, delivery: Delivery, outcome: Result | BaseException, delay_s: float) -> bool:
        """Queue for another attempt after `delay_s`, if one is left; to wait for its key's quota is not counted."""
        limits: tuple[str | int, int] = ("", self._limits[1]) if isinstance(outcome, RateLimited) else self._limits
        return await self._change("again", delivery, *limits, int(delay_s * 1000), codec.encode_problem(outcome))

    async def release(self, delivery: Delivery) -> None:
        """Give an unfinished job to the next free worker, before all others; the attempt is not counted."""
        await self._change("release", delivery)

    async def sweep(self) -> int:
        """Forget expired jobs and their payloads; return how many. Any number of workers may sweep at once."""
        expired: list[bytes] = await self._redis.run_script("expired", _SWEEP_BATCH)
        for raw in expired:
            # Payloads first: a death in between leaves a job that the next sweep finds again.
            await self._payloads.delete_job(raw.decode())
            await self._redis.run_script("forget", raw)
        return len(expired)

    async def sweep_orphans(self) -> None:
        """Remove what nobody will ask for: payloads of submits that were not accepted, records of workers long gone."""
        for job_id in await self._payloads.older_than(self._settings.job_ttl_s + _MIN_ORPHAN_AGE_S):
            with translate_redis_errors():
                known = await self._redis.client.exists(redis_keys.key("job", job_id))
            if not known:
                await self._payloads.delete_job(job_id)
        with translate_redis_errors():
            rows: Any = await self._redis.client.hgetall(redis_keys.key("workers", self.service))
        for row in rows.values():
            if time.time() - (other := Worker.model_validate_json(row)).seen > _FORGET_S:
                await self._redis.run_script("leave", self.service, other.id)

    async def _change(self, verb: str, delivery: Delivery, *facts: str | bytes | float) -> bool:
        """Run a verb on a delivery's job; False when the job was taken from this attempt."""
        return bool(await self._redis.run_script(verb, delivery.id, delivery.attempt, *facts) != b"lost")

    async def leave(self) -> None:
        """Remove this worker's record; jobs that it still holds go to others when their lease ends."""
        await self._redis.run_script("leave", self.service, self.consumer)

    async def close(self) -> None:
        """Close the connections."""
        await self.stops.close()
        await self._redis.close()


def _delivery(job_id: bytes, fence: int, values: list[bytes | None]) -> Delivery:
    text = [None if value is None else value.decode() for value in values[:-1]]
    service, path, tenant, headers, priority, tries = (part or "" for part in text)
    facts = service, path, tenant, json.loads(headers), int(priority), values[-1]
    return Delivery(job_id.decode(), int(fence), int(tries), *facts)
