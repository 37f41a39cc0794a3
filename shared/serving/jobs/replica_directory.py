"""Replica directory: the replicas of one service as a worker sees them, and which of them gets the next job."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError
from redis.exceptions import RedisError

from fovea.api.replica import HEARTBEAT_TTL_S, RENEW_S, WANTED_S, ReplicaRecord, replicas_key, wanted_key
from shared.jobs.redis_connection import open_async_redis

# Silence after which a replica that still holds a job hangs; a busy one may renew its record late.
_SILENT_S = 2 * HEARTBEAT_TTL_S
_AVOID_S = 2.0  # how long a replica that refused a connection is passed over
_NO_MEMORY_SHARE = 0.9  # share of its memory beyond which a replica that dies is taken to have died of it
_LAST_WORD_S = 1.5  # longest wait for the record by which a replica says that it ran out of memory


class ReplicaDirectory:
    """The replicas of one service and version. Belongs to one event loop."""

    def __init__(self, url: str, service: str, version: str) -> None:
        self.service = service
        self._version = version
        self._redis: Any = open_async_redis(url, socket_timeout=2.0, socket_connect_timeout=1.0)
        self._moved: dict[str, tuple[float, float]] = {}  # id → `seen` of its record, and when we saw it move
        self._busy: Counter[str] = Counter()
        self._avoided: dict[str, float] = {}

    async def pick(self) -> ReplicaRecord | None:
        """A ready replica with the fewest jobs of ours; None while there is none."""
        now = time.monotonic()
        ready = [
            record
            for record in (await self.read()).values()
            if record.ready and record.version == self._version
            if now - self._moved[record.id][1] < HEARTBEAT_TTL_S and now >= self._avoided.get(record.id, 0.0)
        ]
        return min(ready, key=lambda record: self._busy[record.id], default=None)

    async def want(self) -> None:
        """Ask for a replica, where the service has none until somebody does; never raises."""
        with suppress(RedisError, OSError):
            await self._redis.set(wanted_key(self.service), "1", ex=WANTED_S)

    @contextmanager
    def occupy(self, replica: ReplicaRecord) -> Iterator[None]:
        """Count a job at a replica while the block runs."""
        self._busy[replica.id] += 1
        try:
            yield
        finally:
            self._busy[replica.id] -= 1

    def avoid(self, replica: ReplicaRecord) -> None:
        """Pass over a replica for a moment."""
        self._avoided[replica.id] = time.monotonic() + _AVOID_S

    def is_shared(self, replica: ReplicaRecord) -> bool:
        """Whether the replica has another job of ours."""
        return self._busy[replica.id] > 1

    async def wait_until_silent(self, replica: ReplicaRecord) -> None:
        """Return once the replica hangs: its record is there and is not renewed. One that drains has withdrawn it."""
        while True:
            await asyncio.sleep(RENEW_S)
            is_announced = replica.id in await self.read()
            if is_announced and time.monotonic() - self._moved[replica.id][1] > _SILENT_S:
                return

    async def has_died_of_memory(self, replica: ReplicaRecord) -> bool:
        """Whether a replica that broke off said that it ran out of memory, or was last seen with next to none left."""
        end = time.monotonic() + _LAST_WORD_S
        while time.monotonic() < end:
            last = (await self.read()).get(replica.id)
            if last is None or last.out_of_memory or last.memory >= _NO_MEMORY_SHARE:
                return last is not None
            await asyncio.sleep(0.1)
        return False

    async def read(self) -> dict[str, ReplicaRecord]:
        """All records by id; none while Redis is away, when nothing counts as silent either."""
        now = time.monotonic()
        try:
            found: dict[bytes, bytes] = await self._redis.hgetall(replicas_key(self.service))
        except (RedisError, OSError):
            self._moved = {name: (seen, now) for name, (seen, _) in self._moved.items()}
            return {}
        records = {}
        for value in found.values():
            with suppress(ValidationError):
                record = ReplicaRecord.model_validate_json(value)
                records[record.id] = record
                if self._moved.get(record.id, (None, 0.0))[0] != record.seen:
                    self._moved[record.id] = (record.seen, now)
        self._moved = {name: moved for name, moved in self._moved.items() if name in records}
        return records

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()
