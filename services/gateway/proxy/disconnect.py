"""Disconnect guard: cancels the work on a request when its caller hangs up. Knows nothing about the work."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from fovea.errors import Cancelled
from shared.asgi.shell import HttpCall


class DisconnectGuard:
    """Cancels the block when the caller hangs up, and turns that into `Cancelled`."""

    __slots__ = ("_call", "_is_gone", "_task")

    def __init__(self, call: HttpCall) -> None:
        """Watch the caller of `call` from when its body has arrived."""
        self._call = call
        self._task: asyncio.Task[object] | None = None
        self._is_gone = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._call.on_cancel = self._cancel
        self._call.watch.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.watch.stop()
        self._call.on_cancel = None
        if self._is_gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise Cancelled("The caller went away.") from error

    def _cancel(self) -> None:
        if self._task is not None:
            self._is_gone = True
            self._task.cancel()
