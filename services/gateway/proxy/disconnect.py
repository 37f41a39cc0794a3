"""Notices that a caller has gone away while it waits for an answer. Knows nothing about what it is waiting for."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from services.gateway.http.request_context import RequestContext
from services.gateway.proxy.replayable_body import ReplayableBody
from shared.errors import Cancelled

__all__ = ["DisconnectGuard"]

FIRST_CHECK_S = 0.02
"""A request that is answered sooner is not watched at all, which spares it a task."""

CHECK_INTERVAL_S = 0.1
"""How often we look whether the body has arrived; only then can we listen for the caller's hanging up."""


class DisconnectGuard:
    """Cancels the block when the caller hangs up, and turns that into `Cancelled`."""

    __slots__ = ("_body", "_exchange", "_gone", "_listener", "_loop", "_task", "_timer")

    def __init__(self, exchange: RequestContext, body: ReplayableBody) -> None:
        """Watch the caller of `exchange` from when `body` has arrived."""
        self._exchange, self._body = exchange, body
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(FIRST_CHECK_S, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise Cancelled("The caller went away.") from error

    def _look(self) -> None:
        if self._body.complete:
            self._listener = self._loop.create_task(self._listen())
        else:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._look)

    async def _listen(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._gone = True
            self._task.cancel()
