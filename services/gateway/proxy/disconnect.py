"""Disconnect guard: cancels the work on a request when its caller hangs up. Knows nothing about the work."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from services.gateway.http.request_context import RequestContext
from services.gateway.proxy.replayable_body import ReplayableBody
from shared.errors import Cancelled

FIRST_CHECK_S = 0.02
"""A request that is answered sooner is not watched at all, which saves a task."""

CHECK_INTERVAL_S = 0.1
"""Seconds between two checks whether the body has arrived; only then can a disconnect be received."""


class DisconnectGuard:
    """Cancels the block when the caller hangs up, and turns that into `Cancelled`."""

    __slots__ = ("_body", "_ctx", "_is_gone", "_listener", "_loop", "_task", "_timer")

    def __init__(self, ctx: RequestContext, body: ReplayableBody) -> None:
        """Watch the caller of `ctx` from when `body` has arrived."""
        self._ctx, self._body = ctx, body
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_gone = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(FIRST_CHECK_S, self._check_body)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._is_gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise Cancelled("The caller went away.") from error

    def _check_body(self) -> None:
        if self._body.complete:
            self._listener = self._loop.create_task(self._wait_for_disconnect())
        else:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check_body)

    async def _wait_for_disconnect(self) -> None:
        while (await self._ctx.receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._is_gone = True
            self._task.cancel()
