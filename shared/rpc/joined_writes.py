"""HTTP protocol of our servers: uvicorn's with httptools, which sends the head and the body of an answer together.

Uvicorn writes the head as soon as it is known. A second packet for the body costs the server another system call, and
whoever reads it another wake-up: a tenth of a small request.
"""

from asyncio import AbstractEventLoop, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoinedTransport:
    """A transport that sends what is written in one turn of the event loop at once; all else is the inner one's."""

    __slots__ = ("_held", "_inner", "_loop")

    def __init__(self, inner: Transport, loop: AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send `data` with whatever else is written before the loop turns."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._inner.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held and not self._inner.is_closing():
            self._inner.write(held[0] if len(held) == 1 else b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class JoinedWritesProtocol(HttpToolsProtocol):
    """Uvicorn's protocol over a `JoinedTransport`."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Wrap the transport of a new connection."""
        super().connection_made(JoinedTransport(transport, self.loop))  # type: ignore[arg-type]  # it quacks like one
