"""Rate limits: requests per minute and per day, counted in Redis so that all gateways agree.

While Redis is away each gateway counts for itself, so that requests are served rather than refused. Counting is done by
the library `limits`; this file says what is counted under which name. Knows nothing about keys and routes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from services.gateway.policy.auth import Caller
from shared.errors import RateLimited
from shared.jobs.redis_connection import open_redis_pool
from shared.settings import Settings
from shared.telemetry import log

__all__ = ["RateLimitStatus", "RateLimiter"]

REDIS_RETRY_S = 2.0
"""How long this process counts for itself before it tries Redis again."""


@dataclass(frozen=True, slots=True)
class RateLimitStatus:
    """How much of the current window a caller has used."""

    limit: int
    used: int
    resets_at: float

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `X-RateLimit-*` headers: limit, what is left, seconds until the window ends."""
        return [
            (b"x-ratelimit-limit", b"%d" % self.limit),
            (b"x-ratelimit-remaining", b"%d" % max(self.limit - self.used, 0)),
            (b"x-ratelimit-reset", b"%d" % math.ceil(self.wait_s)),
        ]

    @property
    def wait_s(self) -> float:
        """Seconds until the window ends."""
        return max(self.resets_at - time.time(), 0.0)


class RateLimiter:
    """Counts requests per caller."""

    def __init__(self, settings: Settings) -> None:
        """Count in the Redis of `settings`, where there is one."""
        self._default_rate = settings.rate_limit_rpm
        self._is_limited = settings.auth == "keys" or "rate_limit_rpm" in settings.model_fields_set
        self._local = MemoryStorage()
        self._shared: RedisStorage | None = None
        self._pool: ConnectionPool | None = None
        self._redis_retry_at = 0.0
        self._window_ends: dict[str, float] = {}
        if settings.redis_url and self._is_limited:
            # A burst waits for a connection rather than taking Redis for away.
            self._pool = open_redis_pool(settings.redis_url, max_connections=32, timeout=1, socket_timeout=1)
            options: dict[str, Any] = {"connection_pool": self._pool}
            self._shared = RedisStorage(
                "async+redis://", implementation="redispy", key_prefix="fovea:limits", **options
            )

    async def count(self, caller: Caller) -> RateLimitStatus | None:
        """Count one request; None where nothing is limited (a local machine whose owner set no rate).

        Raises:
            RateLimited: The caller has used up its minute or its day; `retry_after` says when to try again.
        """
        if not self._is_limited:
            return None
        own = caller.rate_per_minute
        minute = RateLimitItemPerMinute(own or self._default_rate)
        name = f"key/{caller.key}" if own else f"tenant/{caller.tenant}"
        status = await self._count_hit(minute, name)
        self._require_within(status, "minute")
        if caller.quota_per_day is not None:
            day = RateLimitItemPerDay(caller.quota_per_day)
            self._require_within(await self._count_hit(day, f"key/{caller.key}"), "day")
        return status

    async def stop(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.disconnect()

    def _require_within(self, status: RateLimitStatus, window: str) -> None:
        if status.used > status.limit:
            detail = f"{status.limit} requests per {window} are allowed, and all are used."
            hint = f"Try again in {math.ceil(status.wait_s)} s."
            raise RateLimited(detail, hint=hint, retry_after=max(status.wait_s, 1.0))

    async def _count_hit(self, item: RateLimitItem, name: str) -> RateLimitStatus:
        key = item.key_for(name)
        if self._shared is not None and time.monotonic() >= self._redis_retry_at:
            try:
                return await self._increment(self._shared, item, key)
            except (RedisError, OSError, TimeoutError) as error:
                log().warning("Redis is away; rates are counted in this process", reason=str(error))
                self._redis_retry_at = time.monotonic() + REDIS_RETRY_S
        return await self._increment(self._local, item, key)

    async def _increment(self, storage: Storage, item: RateLimitItem, key: str) -> RateLimitStatus:
        expiry = item.get_expiry()
        used = await storage.incr(key, expiry)
        resets_at = self._window_ends.get(key, 0.0)
        if used == 1:
            resets_at = time.time() + expiry
        elif resets_at <= time.time():
            resets_at = await storage.get_expiry(key)
        self._store_window_end(key, resets_at)
        return RateLimitStatus(item.amount, used, resets_at)

    def _store_window_end(self, key: str, resets_at: float) -> None:
        """Store when a window ends, which saves a query; windows that ended are dropped once there are many."""
        if len(self._window_ends) > 10_000:
            now = time.time()
            self._window_ends = {k: t for k, t in self._window_ends.items() if t > now}
        self._window_ends[key] = resets_at
