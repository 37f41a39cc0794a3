"""Redis client: one connection pool, one script, and errors that say in which way Redis is unavailable or full.

A call that was cut off is sent again for a moment: every verb of the script may be repeated without harm.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeVar

import redis.asyncio as aioredis
import stamina
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from fovea.errors import NotReady, StorageFull
from shared.jobs.redis_connection import open_redis_pool
from shared.jobs.redis_keys import ROOT

# The script is missing where Redis was restarted between its loading and its call.
_UNAVAILABLE: Final = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.NoScriptError, OSError)
_REFUSED_WHEN_FULL: Final = ("submit", "retry")  # verbs that ask for memory; all others free some, or end what will
_READ_ONLY: Final = (exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.ClusterDownError)
# Answers of a Redis that is there but takes no writes: a replica, a disk that fails, too few replicas.
_READ_ONLY_PREFIXES: Final = ("MISCONF", "NOREPLICAS")

_FULL_HINT: Final = (
    "Give it more memory (`maxmemory`; FOVEA_REDIS_MAX_BYTES for our own), delete jobs, sessions or documents, "
    "or lower FOVEA_JOB_TTL_S and FOVEA_SESSION_TTL_S."
)

UNUSABLE: Final = (NotReady, StorageFull)
"""Errors of a Redis or an object store that is away or full: both pass, and work that is done waits for it."""

ANY = ""
"""Name that every message of a channel wakes."""

T = TypeVar("T")

_RETRY_FOREVER: Final = stamina.AsyncRetryingCaller(
    attempts=None, timeout=None, wait_initial=0.05, wait_max=0.4, wait_jitter=0.1
).on(UNUSABLE)
_MAX_CONNECTIONS = 64
_TIMEOUT_S = 5.0
_RECONNECT_PAUSE_S = 0.1  # between two tries to subscribe while Redis is away


@contextmanager
def translate_redis_errors() -> Iterator[None]:
    """Turn every way in which Redis can be unavailable into `NotReady`, and a full one into `StorageFull`."""
    try:
        yield
    except (exceptions.AuthenticationError, exceptions.AuthorizationError) as error:
        raise NotReady(
            "Redis refuses our password.", hint="Check FOVEA_REDIS_URL, FOVEA_REDIS_PASSWORD or their files."
        ) from error
    except _UNAVAILABLE as error:
        raise NotReady("The job queue can't be reached.", hint="Try again in a moment.", retry_after=1) from error
    except exceptions.OutOfMemoryError as error:
        raise StorageFull("Redis is full: nothing new can be stored.", hint=_FULL_HINT, retry_after=30) from error
    except exceptions.ResponseError as error:
        if "No space left" in str(error):
            hint = "Free space on the disk of Redis."
            raise StorageFull("The disk of Redis is full: it takes no writes.", hint=hint, retry_after=30) from error
        if not isinstance(error, _READ_ONLY) and not str(error).startswith(_READ_ONLY_PREFIXES):
            raise
        raise NotReady("The job queue takes no writes.", hint="See the log of Redis.", retry_after=5) from error


async def retry_until_connected(call: Callable[[], Awaitable[T]]) -> T:
    """Call until Redis is back or has room, for work that outlives that. Pauses grow to half a second, with jitter."""
    return await _RETRY_FOREVER(call)


async def cancel_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: `asyncio.wait_for`, with which redis-py sends, may swallow a cancel in Python 3.11.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)


class RedisClient:
    """Connection of the queue to one Redis. Belongs to the event loop that first uses it; `close` it there."""

    def __init__(self, url: str) -> None:
        """Prepare; nothing is connected before the first call, so a Redis that is away is not an error here."""
        pool = open_redis_pool(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=1.0,
            protocol=2,
            # One that is silent will be so a moment later, too: its callers have waited long enough.
            retry=Retry(ConstantBackoff(0.1), 2, (exceptions.ConnectionError, exceptions.ReadOnlyError)),
        )
        self.client: Any = aioredis.Redis.from_pool(pool)
        self._states: Any = self.client.register_script(_script())
        self._states_when_full: Any = self.client.register_script(f"#!lua flags=allow-oom\n{_script()}")

    async def run_script(self, name: str, *args: str | bytes | float) -> Any:
        """Run one verb of `states.lua`; `NotReady` if Redis is away, `StorageFull` for new jobs where it is full."""
        script = self._states if name in _REFUSED_WHEN_FULL else self._states_when_full
        with translate_redis_errors():
            return await script(keys=[ROOT], args=[name, *args])

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()


@cache
def _script() -> str:
    return files("shared.jobs").joinpath("states.lua").read_text(encoding="utf-8")


class ChangeListener:
    """Events by name, set when a channel carries that name: one subscription per process wakes all that wait.

    A message may be lost while Redis is away: all are woken when the subscription is back, and watchers poll, too.
    """

    def __init__(self, redis: RedisClient, channel: str) -> None:
        """Listen to `channel` from the first watcher on until `close`."""
        self._redis = redis
        self._channel = channel
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, name: str = ANY) -> Iterator[asyncio.Event]:
        """An event that is set at each change of `name` (of anything, by default); clear it before you look."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        event = asyncio.Event()
        self._watchers[name].add(event)
        try:
            yield event
        finally:
            self._watchers[name].discard(event)
            if not self._watchers[name]:
                del self._watchers[name]

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            await cancel_tasks(self._listener)
            self._listener = None

    async def _listen(self) -> None:
        while True:
            with suppress(NotReady), translate_redis_errors():
                await self._follow()
            await asyncio.sleep(_RECONNECT_PAUSE_S)

    async def _follow(self) -> None:
        subscription: Any = self._redis.client.pubsub()
        try:
            await subscription.subscribe(self._channel)
            while True:
                message = await subscription.get_message(timeout=None)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self._wake(*self._watchers)
                elif message["type"] == "message":
                    self._wake(message["data"].decode(), ANY)
        finally:
            await subscription.aclose()

    def _wake(self, *names: str) -> None:
        for name in names:
            for event in self._watchers.get(name, ()):
                event.set()
