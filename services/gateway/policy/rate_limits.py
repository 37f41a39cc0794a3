"""How much a caller may ask for: requests per minute and per day, counted in Redis so that all gateways agree.

While Redis is away each gateway counts for itself, which errs on the side of serving. Counting is the `limits`
library's; this file says what is counted under which name. Knows nothing about keys and routes.
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
from shared.settings import Settings
from shared.telemetry import log

__all__ = ["RateLimitStatus", "RateLimiter"]

REDIS_RETRY_S = 2.0
"""How long we count for ourselves before we try Redis again."""


@dataclass(frozen=True, slots=True)
class RateLimitStatus:
    """Where a caller stands in its present window."""

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
        self._common = settings.rate_per_minute
        self._demanded = settings.auth == "keys" or "rate_per_minute" in settings.model_fields_set
        self._own = MemoryStorage()
        self._shared: RedisStorage | None = None
        self._pool: ConnectionPool | None = None
        self._back_due = 0.0
        self._resets: dict[str, float] = {}
        if settings.redis_url and self._demanded:
            url = f"async+{settings.redis_url}"
            self._pool = ConnectionPool.from_url(settings.redis_url, socket_timeout=1)
            options: dict[str, Any] = {"connection_pool": self._pool}
            self._shared = RedisStorage(url, implementation="redispy", key_prefix="fovea:limits", **options)

    async def count(self, caller: Caller) -> RateLimitStatus | None:
        """Count one request; None where nothing is limited (a local machine whose owner set no rate).

        Raises:
            RateLimited: The caller has spent its minute or its day; `retry_after` says when to come back.
        """
        if not self._demanded:
            return None
        own = caller.rate_per_minute
        minute = RateLimitItemPerMinute(own or self._common)
        name = f"key/{caller.key}" if own else f"tenant/{caller.tenant}"
        standing = await self._hit(minute, name)
        self._check(standing, "minute")
        if caller.quota_per_day is not None:
            day = RateLimitItemPerDay(caller.quota_per_day)
            self._check(await self._hit(day, f"key/{caller.key}"), "day")
        return standing

    async def stop(self) -> None:
        """Hang up."""
        if self._pool is not None:
            await self._pool.disconnect()

    def _check(self, standing: RateLimitStatus, window: str) -> None:
        if standing.used > standing.limit:
            detail = f"{standing.limit} requests per {window} are allowed, and they are spent."
            hint = f"Come back in {math.ceil(standing.wait_s)} s."
            raise RateLimited(detail, hint=hint, retry_after=max(standing.wait_s, 1.0))

    async def _hit(self, item: RateLimitItem, name: str) -> RateLimitStatus:
        key = item.key_for(name)
        if self._shared is not None and time.monotonic() >= self._back_due:
            try:
                return await self._count(self._shared, item, key)
            except (RedisError, OSError, TimeoutError) as error:
                log().warning("Redis is away; rates are counted in this process", reason=str(error))
                self._back_due = time.monotonic() + REDIS_RETRY_S
        return await self._count(self._own, item, key)

    async def _count(self, storage: Storage, item: RateLimitItem, key: str) -> RateLimitStatus:
        expiry = item.get_expiry()
        used = await storage.incr(key, expiry)
        resets_at = self._resets.get(key, 0.0)
        if used == 1:
            resets_at = time.time() + expiry
        elif resets_at <= time.time():
            resets_at = await storage.get_expiry(key)
        self._remember(key, resets_at)
        return RateLimitStatus(item.amount, used, resets_at)

    def _remember(self, key: str, resets_at: float) -> None:
        """Keep when a window ends, which saves asking; windows that ended are dropped once there are many."""
        if len(self._resets) > 10_000:
            now = time.time()
            self._resets = {k: t for k, t in self._resets.items() if t > now}
        self._resets[key] = resets_at
