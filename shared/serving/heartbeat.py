"""Replica heartbeat: writes a replica's record into Redis and renews it while the replica lives.

Without Redis, or while Redis is away, the replica serves on; callers that know its address still reach it.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from pydantic import ValidationError
from redis.exceptions import RedisError

from fovea.api.replica import HEARTBEAT_TTL_S, RENEW_S, ReplicaRecord, replicas_key
from shared import telemetry
from shared.jobs.redis_connection import open_async_redis, open_redis
from shared.settings import Settings

MAX_TROUBLE = 500
"""Characters of what a replica says about its trouble."""

_REMOVE_AFTER_S = 60 * HEARTBEAT_TTL_S  # records this old are removed by the next replica of the service


class Heartbeat:
    """Renews one record. Belongs to the event loop that starts it."""

    def __init__(self, url: str, record: Callable[[], ReplicaRecord]) -> None:
        self._record = record
        self._url = url
        self._redis: Any = open_async_redis(url, socket_timeout=2.0, socket_connect_timeout=1.0)
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_withdrawn = False

    def start(self) -> None:
        """Renew from now on, in the background."""
        self._task = asyncio.create_task(self._renew())

    async def withdraw(self) -> None:
        """Remove the record and renew it no more, so that no new request comes this way."""
        if self._task is None or self._is_withdrawn:
            return
        self._is_withdrawn = True
        self._stopping.set()  # not cancelled: a client that is cut off in the middle of a call may swallow it
        await self._task
        record = self._record()
        with contextlib.suppress(RedisError, OSError):
            await self._redis.hdel(replicas_key(record.service), record.id)

    async def stop(self) -> None:
        """Withdraw, and close the connection."""
        await self.withdraw()
        await self._redis.aclose()

    def announce_last(self, record: ReplicaRecord) -> None:
        """Write a record from another thread, on a connection of its own, as the last act of a process."""
        self._stopping.set()
        _write_last(self._url, record)

    async def _renew(self) -> None:
        is_away = False
        await self._try(self._sweep())
        while not self._stopping.is_set():
            record = self._record()
            key, value = replicas_key(record.service), record.model_dump_json()
            failure = await self._try(self._redis.hset(key, record.id, value))
            if bool(failure) != is_away:
                is_away = bool(failure)
                telemetry.log().warning("not announced" if is_away else "announced again", why=failure)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_S):
                    await self._stopping.wait()

    async def _try(self, call: Awaitable[object]) -> str:
        """Why the call failed; empty when it did not."""
        try:
            await call
        except (RedisError, OSError) as error:
            return str(error) or type(error).__name__
        return ""

    async def _sweep(self) -> None:
        """Remove records that nobody has renewed for long: replicas that were killed."""
        key = replicas_key(self._record().service)
        found = await self._redis.hgetall(key)
        old = [name for name, value in found.items() if time.time() - _last_seen(value) > _REMOVE_AFTER_S]
        if old:
            await self._redis.hdel(key, *old)


@contextlib.contextmanager
def tell_failed_start(service: str, settings: Settings) -> Iterator[None]:
    """Have a block that fails to start a replica leave a record, without an address, that says why."""
    try:
        yield
    except Exception as error:
        is_safe = isinstance(error, (ImportError, OSError, SyntaxError))  # others may tell secrets to everybody
        told = f"{type(error).__name__}: {error if is_safe else 'its log says more'}"
        trouble = f"It can't start: {getattr(error, 'detail', told)}"[:MAX_TROUBLE]
        record = ReplicaRecord(
            id=f"{service}-start", service=service, http="", pid=os.getpid(), ready=False, models=(), trouble=trouble,
            version=settings.service_version, seen=time.time(),
        )  # fmt: skip
        if settings.redis_url:
            _write_last(settings.redis_url, record)
        raise


def _write_last(url: str, record: ReplicaRecord) -> None:
    last = open_redis(url, socket_timeout=0.5, socket_connect_timeout=0.5)
    with contextlib.suppress(RedisError, OSError):
        last.hset(replicas_key(record.service), record.id, record.model_dump_json())


def _last_seen(value: bytes) -> float:
    try:
        return ReplicaRecord.model_validate_json(value).seen
    except ValidationError:
        return 0.0
