"""HTTP server: uvicorn with uvloop and httptools, and with limits on the time and size of request headers.

Knows nothing about what is served.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport

import uvicorn

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
        """Stop waiting."""
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
        """Wait for the rest of the headers."""
        super().on_message_begin()
        self._header_bytes = 0
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop waiting: all headers are here."""
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


def create_server(app: object, settings: Settings) -> uvicorn.Server:
    """Create a server for `app` on the HTTP address of `settings`; it is not started."""
    protocol = type("HeaderLimitProtocol", (_HeaderLimitProtocol,), {"header_timeout_s": settings.body_read_timeout_s})
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI app
        host=settings.host,
        port=settings.http_port,
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(int(settings.shutdown_grace_s), 1),
    )
    return uvicorn.Server(config)
