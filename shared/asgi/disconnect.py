"""Disconnect watch: notices that a caller hung up while its request is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.asgi.body import BoundedBody, Message, Receive

FIRST_CHECK_S = 0.02
"""A request that is answered sooner is not watched at all, which saves a task."""

CHECK_INTERVAL_S = 0.1
"""Seconds between two checks whether the body has arrived; only then can a disconnect be received."""


class DisconnectWatch:
    """Calls `on_gone` once when the caller of a request hangs up after all of its body has arrived."""

    __slots__ = ("_body", "_listener", "_loop", "_on_gone", "_receive", "_timer")

    def __init__(self, receive: Receive, body: BoundedBody, on_gone: Callable[[], None]) -> None:
        """Watch from `start` on, or from when somebody waits for the disconnect."""
        self._receive, self._body, self._on_gone = receive, body, on_gone
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Task[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch, unless the request is over in a moment."""
        self._timer = self._loop.call_later(FIRST_CHECK_S, self._check_body)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()

    async def wait(self) -> Message:
        """Return the disconnect."""
        return await asyncio.shield(self._listen())

    def _check_body(self) -> None:
        if self._body.complete:
            self._listen()
        else:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check_body)

    def _listen(self) -> asyncio.Task[Message]:
        if self._listener is None:
            self._listener = self._loop.create_task(self._wait_for_disconnect())
        return self._listener

    async def _wait_for_disconnect(self) -> Message:
        while (message := await self._receive())["type"] != "http.disconnect":
            pass
        self._on_gone()
        return message
