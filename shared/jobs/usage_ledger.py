"""Usage ledger: what each tenant consumed of each model on each day, in Redis, or in the process where there is none.

Additions are collected and written once a second, so that a request costs no round trip. While Redis is away they wait.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from redis.exceptions import RedisError

from fovea.api.usage import USAGE_FIELDS, UsageRecord
from shared.jobs.redis_connection import open_async_redis

_FLUSH_S: Final = 1.0
_KEEP_S: Final = 400 * 24 * 3600
_TENANTS: Final = "fovea:usage:tenants"
# Rows that are held here, where there is no Redis or it is away; beyond it the oldest days go.
_MAX_SUMS: Final = 100_000
_Key = tuple[str, date, str]


class UsageLedger:
    """Adds up usage. Belongs to the event loop that starts it."""

    def __init__(self, redis_url: str | None) -> None:
        self._redis: Any = open_async_redis(redis_url, socket_timeout=2) if redis_url else None
        self._sums: dict[_Key, defaultdict[str, float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def add(self, tenant: str, model: str, consumed: Mapping[str, float]) -> None:
        """Add what a request of today consumed; the request itself is counted where `consumed` does not say."""
        self._add_to((tenant, datetime.now(UTC).date(), model), {"requests": 1.0, **consumed})
        if self._redis is not None and self._task is None:
            self._task = asyncio.create_task(self._flush_later())

    async def read(self, tenant: str | None, since: date, until: date) -> list[UsageRecord]:
        """Records of a tenant, or of all, between two days, newest first; `RedisError` or `OSError` without Redis."""
        await self.flush()
        found = {key: dict(sums) for key, sums in self._sums.items() if since <= key[1] <= until}
        if self._redis is not None:
            tenants = [tenant] if tenant else sorted(name.decode() for name in await self._redis.smembers(_TENANTS))
            for name in tenants:
                for day in (since + timedelta(n) for n in range((until - since).days + 1)):
                    await self._read_day(name, day, found)
        records = [
            UsageRecord(day=day, tenant=name, model=model, **_whole(sums))
            for (name, day, model), sums in found.items()
            if tenant in {None, name}
        ]
        return sorted(records, key=lambda each: (-each.day.toordinal(), each.tenant, each.model))

    async def flush(self) -> None:
        """Write what has been added; it stays here if Redis is away."""
        async with self._writing:
            if self._redis is None or not self._sums:
                return
            sums, self._sums = self._sums, {}
            pipe = self._redis.pipeline(transaction=True)
            for (tenant, day, model), values in sums.items():
                key = _key(tenant, day)
                for name, value in values.items():
                    pipe.hincrbyfloat(key, f"{name}|{model}", value)
                pipe.expire(key, _KEEP_S).sadd(_TENANTS, tenant)
            try:
                await pipe.execute()
            except (RedisError, OSError, TimeoutError):
                for waiting, values in sums.items():
                    self._add_to(waiting, values)
                raise

    async def stop(self) -> None:
        """Write the rest and close the connection."""
        async with self._writing:  # one that is cut off would be lost
            if self._task is not None:
                self._task.cancel()
        if self._redis is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await self.flush()
            await self._redis.aclose()

    def _add_to(self, key: _Key, values: Mapping[str, float]) -> None:
        if key not in self._sums and len(self._sums) >= _MAX_SUMS:
            oldest = min(day for _, day, _ in self._sums)
            self._sums = {each: sums for each, sums in self._sums.items() if each[1] > oldest}
        sums = self._sums.setdefault(key, defaultdict(float))
        for name, value in values.items():
            sums[name] += value

    async def _flush_later(self) -> None:
        while self._sums:
            await asyncio.sleep(_FLUSH_S)
            with suppress(RedisError, OSError, TimeoutError):
                await self.flush()
        self._task = None

    async def _read_day(self, tenant: str, day: date, found: dict[_Key, dict[str, float]]) -> None:
        for field, value in (await self._redis.hgetall(_key(tenant, day))).items():
            name, _, model = field.decode().partition("|")
            sums = found.setdefault((tenant, day, model), {})
            sums[name] = sums.get(name, 0.0) + float(value)


def _key(tenant: str, day: date) -> str:
    return f"fovea:usage:{tenant}:{day.isoformat()}"


def _whole(sums: Mapping[str, float]) -> dict[str, Any]:
    """The sums as a record takes them: counts are whole numbers."""
    digits = {"kv_byte_seconds": 6, "cpu_seconds": 6}
    return {name: round(sums[name], digits.get(name)) for name in USAGE_FIELDS if name in sums}
