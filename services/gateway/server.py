"""HTTP server: uvicorn with uvloop and httptools, and with limits on the time and size of request headers.

The metrics port has a server of its own, in the same event loop: the queue is asked for its counts at each scrape.
"""

import contextlib
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from services.gateway.gateway import Gateway
from services.gateway.routes import health
from shared.rpc.joined_writes import JoinedWritesProtocol
from shared.settings import Settings

MAX_HEADER_BYTES = 2**16
"""URL and headers of one request together."""

KEEP_ALIVE_S = 65
"""How long an idle connection of a caller is kept."""


class _HeaderLimitProtocol(JoinedWritesProtocol):
    """Closes a connection whose request line and headers do not arrive in time, or do not end."""

    header_timeout_s = 30.0
    _timer: TimerHandle | None = None
    _header_bytes = _unfinished = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count the bytes of headers that have not ended yet: the parser would keep them for ever."""
        super().data_received(data)
        if self._timer is not None:
            self._unfinished += len(data)
            if self._unfinished > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            # The parser turns what its callbacks raise into a 400 and closes the connection.
            message = "headers too large"
            raise ValueError(message)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._unfinished = 0
            self._timer = self.loop.call_later(self.header_timeout_s, self._close_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Uvicorn, which tells when it begins to stop."""

    on_stop: Callable[[], None] = staticmethod(lambda: None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_stop()
        await super().shutdown(sockets)


def create_server(app: object, settings: Settings) -> _Server:
    """Create a server for `app` on the HTTP address of `settings`; it is not started."""
    protocol = type("HeaderLimitProtocol", (_HeaderLimitProtocol,), {"header_timeout_s": settings.body_read_timeout_s})
    grace_s = max(int(settings.shutdown_grace_s), 1)
    return _Server(
        _build_config(
            app, settings, port=settings.http_port, http=protocol, lifespan="on", timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
        )
    )  # fmt: skip


class _QuietServer(uvicorn.Server):
    """Uvicorn, leaving signals to the server next to it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def create_metrics_server(gateway: Gateway, settings: Settings) -> uvicorn.Server:
    """Create a server for the metrics of a gateway on `metrics_port`; it is not started."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = gateway
    app.add_api_route("/metrics", health.metrics, response_model=None)
    return _QuietServer(
        _build_config(app, settings, port=settings.metrics_port, lifespan="off", timeout_graceful_shutdown=1)
    )


def _build_config(app: object, settings: Settings, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI app
        host=settings.host, loop="uvloop", ws="none", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, **options,
    )  # fmt: skip
