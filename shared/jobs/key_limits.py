"""Limits of API keys beyond the gateway: which keys are revoked, and the tokens that jobs spend of a key's quotas.

A job carries its key's id and quotas of tokens in a header. Gateway and workers count in the same windows in Redis.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from fovea.errors import RateLimited, Unauthenticated
from shared.jobs.redis_client import translate_redis_errors
from shared.jobs.redis_connection import open_redis_pool
from shared.telemetry import log

KEY_HEADER: Final = "x-fovea-key"
"""Header of a job: id of the key that queued it and its quotas of tokens, as JSON. Callers can't set it."""

REVOKED_KEYS: Final = "fovea:revoked-keys"
"""Redis set of the ids of revoked keys."""

_MAX_CONNECTIONS: Final = 32


def open_limit_windows(url: str) -> tuple[ConnectionPool, RedisStorage]:
    """Open the windows in which requests and tokens are counted; the pool is the caller's to disconnect."""
    # Callers beyond the pool wait for a connection: an error would read as if Redis were away.
    pool = open_redis_pool(url, max_connections=_MAX_CONNECTIONS, timeout=2, socket_timeout=1)
    options: dict[str, Any] = {"connection_pool": pool}
    return pool, RedisStorage("async+redis://", implementation="redispy", key_prefix="fovea:limits", **options)


def list_token_windows(per_minute: int | None, per_day: int | None) -> list[tuple[RateLimitItem, str]]:
    """The windows of a key's quotas of tokens, each with its unit."""
    minute = [] if per_minute is None else [(RateLimitItemPerMinute(per_minute), "tokens per minute")]
    day = [] if per_day is None else [(RateLimitItemPerDay(per_day), "tokens per day")]
    return [*minute, *day]


def name_tokens(key_id: str) -> str:
    """The name under which the tokens of a key are counted."""
    return f"tokens/{key_id}"


def describe_key(key_id: str, per_minute: int | None, per_day: int | None) -> dict[str, str]:
    """The header by which a job carries its key; none for a caller without one."""
    facts = {"id": key_id, "tokens_per_minute": per_minute, "tokens_per_day": per_day}
    return {KEY_HEADER: json.dumps(facts)} if key_id else {}


class JobKeyLimits:
    """Keeps a worker's jobs within the limits of the keys that queued them."""

    def __init__(self, redis_url: str) -> None:
        self._pool, self._windows = open_limit_windows(redis_url)
        self._redis: Any = Redis(connection_pool=self._pool)

    async def require_usable(self, headers: Mapping[str, str]) -> None:
        """Check that a job's key may still run it; `Unauthenticated` if revoked, `RateLimited` until it has tokens."""
        key = _read_key(headers)
        with translate_redis_errors():
            if key and await self._redis.sismember(REVOKED_KEYS, key["id"]):
                raise Unauthenticated("The API key that queued this job was revoked.", hint="Queue it with another.")
            for item, unit in _windows_of(key):
                name = item.key_for(name_tokens(key["id"]))
                if await self._windows.get(name) >= item.amount:
                    wait_s = max(await self._windows.get_expiry(name) - time.time(), 1.0)
                    raise RateLimited(f"{item.amount} {unit} are allowed, and all are used.", retry_after=wait_s)

    async def spend(self, headers: Mapping[str, str], tokens: int) -> None:
        """Count the tokens of an answered job."""
        key = _read_key(headers)
        if not key or tokens <= 0:
            return
        try:
            for item, _ in _windows_of(key):
                await self._windows.incr(item.key_for(name_tokens(key["id"])), item.get_expiry(), tokens)
        except (RedisError, OSError, TimeoutError) as error:
            log("jobs").warning("the tokens of a job are not counted", key=key["id"], reason=str(error))

    async def stop(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()


def _read_key(headers: Mapping[str, str]) -> dict[str, Any]:
    text = headers.get(KEY_HEADER)
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _windows_of(key: Mapping[str, Any]) -> list[tuple[RateLimitItem, str]]:
    return list_token_windows(key.get("tokens_per_minute"), key.get("tokens_per_day"))
