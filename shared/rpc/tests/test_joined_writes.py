"""Servers send the head and the body of an answer in one packet, and each part of a stream when it is there."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.rpc.joined_writes import JoinedTransport, JoinedWritesProtocol


class _Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.packets.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


async def test_writes_of_one_turn_are_one_packet():
    wire = _Wire()
    joined = JoinedTransport(wire, asyncio.get_running_loop())
    joined.write(b"head ")
    joined.write(b"body")
    assert wire.packets == []
    await asyncio.sleep(0)
    joined.write(b"next")
    await asyncio.sleep(0)
    assert wire.packets == [b"head body", b"next"]


async def test_close_sends_what_was_written():
    wire = _Wire()
    joined = JoinedTransport(wire, asyncio.get_running_loop())
    joined.write(b"last words")
    joined.close()
    assert wire.packets == [b"last words"]
    assert joined.is_closing()
    joined.write(b"too late")
    await asyncio.sleep(0)
    assert wire.packets == [b"last words"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_answers_and_streams_arrive(loop):
    """Over a real socket: small answers come whole, the first part of a stream before the second is made."""
    with asyncio.Runner(loop_factory=uvicorn.Config("", loop=loop).get_loop_factory()) as runner:
        runner.run(_exchange())


async def _exchange() -> None:
    seen = asyncio.Event()
    async with asyncio.timeout(30), _served(_build_app(seen)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET /whole HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await reader.read(65536)).endswith(b"\r\n\r\nwhole")
        writer.write(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"two" not in await reader.readuntil(b"one")
        seen.set()
        await reader.readuntil(b"two")
        writer.close()
        await writer.wait_closed()


def _build_app(seen: asyncio.Event) -> ASGIApp:
    """`/whole` answers at once; `/stream` sends its second part once the reader has seen the first."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        is_stream = scope["path"] == "/stream"
        size = [] if is_stream else [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": size})
        if is_stream:
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await seen.wait()
        await send({"type": "http.response.body", "body": b"two" if is_stream else b"whole"})

    return app


@asynccontextmanager
async def _served(app: ASGIApp) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=JoinedWritesProtocol, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving
