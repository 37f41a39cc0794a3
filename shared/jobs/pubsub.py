"""Change listener: one Redis subscription per process and channel wakes all that wait for a name.

A message may be lost while Redis is away, so all are woken when the subscription comes back, and watchers poll from
time to time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fovea.errors import NotReady
from shared.jobs.redis_client import RedisClient, cancel_tasks, translate_redis_errors

_RECONNECT_PAUSE_S = 0.1
"""Time between two tries to subscribe while Redis is away."""

ANY = ""
"""Name that every message wakes."""


class ChangeListener:
    """Events by name, set when the channel carries that name."""

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
