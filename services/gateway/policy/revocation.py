"""Revocation: keys that are refused whatever the key file says, and the end of open requests whose key is revoked.

The ids of revoked keys are in Redis, where there is one: all gateways refuse them and job workers don't run what they
queued, also while a key file can't be written. Knows nothing about HTTP and gRPC.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.exceptions import RedisError

from fovea.errors import Unauthenticated
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.caller import Caller
from shared.jobs.key_limits import REVOKED_KEYS
from shared.jobs.redis_client import cancel_tasks
from shared.jobs.redis_connection import open_async_redis
from shared.telemetry import log

CHECK_INTERVAL_S = 0.5
"""Seconds between two looks for revoked keys."""


class Revocations:
    """Revoked keys, and what is under way with each key."""

    def __init__(self, ring: KeyRing, redis_url: str | None) -> None:
        """Watch the keys of `ring` from `start` on, and those revoked in the Redis at `redis_url`."""
        self._ring = ring
        self._redis: Any = open_async_redis(redis_url, socket_timeout=2) if redis_url else None
        self._open: dict[str, set[Callable[[], None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look for revoked keys now, then at intervals."""
        await self._check()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop looking, and close the connection."""
        if self._task is not None:
            await cancel_tasks(self._task)
        if self._redis is not None:
            await self._redis.aclose()

    async def publish(self, key_id: str) -> bool:
        """Have a key refused here at once and, through Redis, everywhere; whether Redis has it."""
        self._ring.block({key_id})
        if self._redis is None:
            return False
        try:
            await self._redis.sadd(REVOKED_KEYS, key_id)
        except (RedisError, OSError, TimeoutError) as error:
            log().error("Redis is away; a revoked key is refused by this gateway alone", key=key_id, reason=str(error))
            return False
        return True

    @asynccontextmanager
    async def end_when_revoked(self, caller: Caller) -> AsyncIterator[None]:
        """Cancel the block when the caller's key is revoked. Raises Unauthenticated: it was."""
        if not self._ring.knows(caller.key):
            yield  # a local caller, or one with a token: it is valid for as long as it says
            return
        task, revoked = asyncio.current_task(), False

        def end() -> None:
            nonlocal revoked
            revoked = True
            if task is not None:
                task.cancel()

        mine = self._open.setdefault(caller.key, set())
        mine.add(end)
        try:
            yield
        except asyncio.CancelledError as error:
            if not revoked or task is None:
                raise
            task.uncancel()
            raise Unauthenticated("The API key was revoked.", hint="Ask for a new one.") from error
        finally:
            mine.discard(end)
            if not mine and self._open.get(caller.key) is mine:
                del self._open[caller.key]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            await self._check()

    async def _check(self) -> None:
        if self._redis is not None:
            with suppress(RedisError, OSError, TimeoutError):
                self._ring.block({name.decode() for name in await self._redis.smembers(REVOKED_KEYS)})
        for key_id in [key_id for key_id in self._open if not self._ring.is_valid(key_id)]:
            for end in list(self._open[key_id]):
                end()
