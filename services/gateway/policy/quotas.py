"""Quotas: requests and tokens per minute and per day, counted in Redis so that all gateways agree.

While Redis is away each gateway counts for itself, so that requests are served rather than refused. Counting is done by
the library `limits`; this file says what is counted under which name. Knows nothing about keys and routes.
"""

import math
import time
from dataclasses import dataclass, replace

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from fovea.api.usage import LimitUse
from fovea.errors import RateLimited
from services.gateway.policy.caller import Caller, KeyLimits
from shared.jobs.key_limits import list_token_windows, name_tokens, open_limit_windows
from shared.settings import Settings
from shared.telemetry import log

REDIS_RETRY_S = 2.0
"""How long this process counts for itself before it tries Redis again."""

_MAX_WINDOWS = 10_000


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
        return max(self.resets_at - time.monotonic(), 0.0)


class QuotaSpent(RateLimited):
    """A caller's quota is spent; `counter` is where it stands."""

    def __init__(self, detail: str, status: RateLimitStatus, *, hint: str) -> None:
        super().__init__(detail, hint=hint, retry_after=max(status.wait_s, 1.0))
        self.counter = status

    @property
    def code(self) -> str:
        return "rate_limited"


@dataclass(slots=True)
class _Window:
    """One counter as this process knows it.

    Attributes:
        used: Hits in the window, of all gateways as far as Redis told, and of this one since.
        resets_at: `time.monotonic()` at which it ends, which no correction of the clock moves.
        unsent: Hits that Redis has not been told of, because it was away.
    """

    used: int = 0
    resets_at: float = 0.0
    unsent: int = 0


class RateLimiter:
    """Counts requests and tokens per caller."""

    def __init__(self, settings: Settings) -> None:
        """Count in the Redis of `settings`, where there is one."""
        self._default_rate = settings.rate_limit_rpm
        self._is_limited = settings.auth != "insecure-local" or "rate_limit_rpm" in settings.model_fields_set
        self._shared: RedisStorage | None = None
        self._pool: ConnectionPool | None = None
        self._redis_retry_at = 0.0
        self._windows: dict[str, _Window] = {}
        if settings.redis_url and self._is_limited:
            self._pool, self._shared = open_limit_windows(settings.redis_url)

    async def count(self, caller: Caller, *, may_spend: bool = True) -> RateLimitStatus | None:
        """Count one request, which may spend tokens or not; None where nothing is limited (a local machine, no rate).

        Raises RateLimited: the caller has used up its minute or its day, of requests or of tokens; `retry_after` says
        when to try again, and `counter` where it stands.
        """
        if not self._is_limited:
            return None
        first: RateLimitStatus | None = None
        for item, name, unit in self._request_windows(caller):
            status = await self._hit(item, name, 1)
            first = first or status
            _require_within(status, unit)
        for item, unit in _token_limits(caller.limits) if may_spend else ():
            spent = await self._hit(item, name_tokens(caller.key), 0)
            # The use of a request is not known before it is answered: the last one may go over.
            _require_within(replace(spent, used=spent.used + 1), unit)
        return first

    async def read(self, caller: Caller) -> list[LimitUse]:
        """Read how much of each limit a caller has used; counts nothing."""
        if not self._is_limited:
            return []
        tokens = [(item, name_tokens(caller.key), unit) for item, unit in _token_limits(caller.limits)]
        found = [(unit, await self._hit(item, name, 0)) for item, name, unit in self._request_windows(caller) + tokens]
        return [
            LimitUse(unit=unit, limit=one.limit, used=min(one.used, one.limit), resets_in_s=round(one.wait_s))
            for unit, one in found
        ]

    async def count_many(self, caller: Caller, requests: int) -> None:
        """Count requests that come together, all or none of them; a negative number gives them back.

        Raises RateLimited: fewer are left of the caller's minute or day.
        """
        if not self._is_limited:
            return
        windows = self._request_windows(caller)
        counted = [(await self._hit(item, name, requests), unit) for item, name, unit in windows]  # before any check
        try:
            for status, unit in counted:
                _require_room(replace(status, used=status.used - requests), requests, unit)
        except QuotaSpent:
            for item, name, _ in windows:
                await self._hit(item, name, -requests)
            raise

    def _request_windows(self, caller: Caller) -> list[tuple[RateLimitItem, str, str]]:
        """The windows in which a caller's requests are counted: item, name and unit of each."""
        own, quota = caller.limits.rate_per_minute, caller.limits.quota_per_day
        name = f"key/{caller.key}" if own else f"tenant/{caller.tenant}"
        minute = (RateLimitItemPerMinute(own or self._default_rate), name, "requests per minute")
        if quota is None:
            return [minute]
        return [minute, (RateLimitItemPerDay(quota), f"key/{caller.key}", "requests per day")]

    async def spend_tokens(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answered request against the caller's quotas of tokens."""
        if self._is_limited and tokens > 0:
            for item, _ in _token_limits(caller.limits):
                await self._hit(item, name_tokens(caller.key), tokens)

    async def stop(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _hit(self, item: RateLimitItem, name: str, amount: int) -> RateLimitStatus:
        """Count in Redis, or here while it is away; what was counted before and meanwhile is carried along."""
        key = item.key_for(name)
        window = self._find_window(key, item)
        if self._shared is not None and time.monotonic() >= self._redis_retry_at:
            unsent, window.unsent = window.unsent, 0
            try:
                await self._hit_redis(self._shared, item, key, window, amount + unsent)
            except (RedisError, OSError, TimeoutError) as error:
                window.unsent += unsent
                log().warning("Redis is away; rates are counted in this process", reason=str(error))
                self._redis_retry_at = time.monotonic() + REDIS_RETRY_S
            else:
                return RateLimitStatus(item.amount, window.used, window.resets_at)
        window.used += amount
        window.unsent += amount if self._shared is not None else 0
        return RateLimitStatus(item.amount, window.used, window.resets_at)

    async def _hit_redis(
        self, storage: RedisStorage, item: RateLimitItem, key: str, window: _Window, amount: int
    ) -> None:
        expiry = item.get_expiry()
        used = await storage.incr(key, expiry, amount) if amount else await storage.get(key)
        if used <= amount and amount:
            window.resets_at = time.monotonic() + expiry
        elif used < window.used or not window.used:  # another gateway began the window
            window.resets_at = await storage.get_expiry(key) - time.time() + time.monotonic()
        window.used = used

    def _find_window(self, key: str, item: RateLimitItem) -> _Window:
        """The current window of a counter; ended ones are dropped once there are many."""
        now = time.monotonic()
        window = self._windows.get(key)
        if window is None or window.resets_at <= now:
            if len(self._windows) > _MAX_WINDOWS:
                self._windows = {k: w for k, w in self._windows.items() if w.resets_at > now}
            window = self._windows[key] = _Window(resets_at=now + item.get_expiry())
        return window


def _token_limits(limits: KeyLimits) -> list[tuple[RateLimitItem, str]]:
    return list_token_windows(limits.tokens_per_minute, limits.tokens_per_day)


def _require_within(status: RateLimitStatus, unit: str) -> None:
    if status.used > status.limit:
        detail = f"{status.limit} {unit} are allowed, and all are used."
        raise QuotaSpent(detail, status, hint=f"Try again in {math.ceil(status.wait_s)} s.")


def _require_room(status: RateLimitStatus, requests: int, unit: str) -> None:
    left = max(status.limit - status.used, 0)
    if requests > left:
        detail = f"These are {requests} requests; {left} of {status.limit} {unit} are left."
        raise QuotaSpent(detail, status, hint="Send fewer at a time, or try again later.")
