"""Metrics port: the metrics of this process on a port of its own, without a key.

For a Prometheus that the network lets in. Runs on threads of its own, so that it answers while an event loop is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from prometheus_client import start_http_server

from shared import telemetry
from shared.serving.gpu_memory import watch_gpu_memory

_RETRY_S = 1.0
"""Seconds between two tries to get the port."""


class MetricsServer:
    """Serves `/metrics` in the background. `start` and `stop` belong to one event loop."""

    def __init__(self, host: str, port: int) -> None:
        """Serve on `host`; port 0 serves nothing."""
        self._address = (host, port)
        self._server: Any = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen as soon as the port is free: a process that is about to stop may still have it."""
        watch_gpu_memory()
        if self._address[1]:
            self._starting = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Free the port."""
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        if self._server is not None:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()

    async def _listen(self) -> None:
        host, port = self._address
        is_told = False
        while True:
            try:
                self._server, _thread = start_http_server(port, host)
            except OSError as error:
                if not is_told:
                    telemetry.log().warning("no metrics yet", host=host, port=port, why=str(error))
                is_told = True
                await asyncio.sleep(_RETRY_S)
            else:
                return
