"""Floods of gRPC calls that send nothing, or much: whoever sends them, others are answered."""

import asyncio
import itertools
import socket
import struct
import threading
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fovea.errors import QueueFull
from services.gateway.grpc import health as grpc_health
from services.gateway.grpc.server import SERVICE, serve_grpc
from services.gateway.policy.memory_budget import MAX_WAITING_PER_TENANT, MemoryBudget, MessageReader
from services.gateway.tests.grpc_front import ANSWER, INFER, call, exchange, open_stream, refused
from shared.rpc import open_inference_pb2 as pb
from tests.harness.waiting import until

CHECK = "/grpc.health.v1.Health/Check"
SOON_S = 10.0  # a wait that a busy machine keeps; what is refused waits for longer limits


def open_idle(channel: Any, method: str, count: int, **options: Any) -> list[Any]:
    return [channel.stream_stream(method)(**options) for _ in range(count)]


async def until_sent(calls: list[Any]) -> None:
    """Give the calls' headers the time to arrive: each has been started, and one answered call came after them."""
    await asyncio.gather(*(one.wait_for_connection() for one in calls))


async def end(calls: list[Any]) -> None:
    for one in calls:
        one.cancel()
    await asyncio.sleep(0)


async def test_idle_calls_without_a_key_keep_nobody_from_an_answer(front, ring, monkeypatch):
    monkeypatch.setattr(grpc_health, "READ_TIMEOUT_S", 60.0)
    _, key = ring.add("bob", ("infer",))
    scene, channel = await front(auth="keys")
    before = scene.app.state.gateway.proxy.budget.left
    idle = open_idle(channel, CHECK, 96)
    await until_sent(idle)
    status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SOON_S)
    assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
    told = await call(channel, "ServerMetadata", metadata=(("x-api-key", key),), timeout=SOON_S)
    assert pb.ServerMetadataResponse.FromString(told).name == "fovea"
    assert scene.app.state.gateway.proxy.budget.left == before, "nothing is reserved for them"
    first = itertools.islice(asyncio.as_completed([one.code() for one in idle]), 8)
    assert {await code for code in first} == {grpc.StatusCode.RESOURCE_EXHAUSTED}, "the oldest made room"
    await end(idle)


async def test_so_many_calls_watch(front, monkeypatch):
    monkeypatch.setattr(grpc_health, "MAX_WATCHES", 3)
    scene, channel = await front()
    stub = health_pb2_grpc.HealthStub(channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    kinds = health_pb2.HealthCheckResponse
    assert {(await one.read()).status for one in watching} == {kinds.NOT_SERVING}
    await refused(stub.Watch(health_pb2.HealthCheckRequest()).read(), "limit")
    scene.announce("http://127.0.0.1:1")
    assert {(await one.read()).status for one in watching} == {kinds.SERVING}
    assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=SOON_S)).status == kinds.SERVING
    await end(watching)


async def test_a_message_without_a_key_has_a_name_at_most(front):
    _, channel = await front(auth="keys")
    await refused(channel.unary_unary(CHECK)(b"x" * 2000), "at most 1,024 bytes")


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ServerMetadata"])
async def test_a_message_that_does_not_matter_is_not_read(front, ring, method):
    _, key = ring.add("alice", ("infer",))
    _, channel = await front(auth="keys")
    silent = channel.stream_stream(f"/{SERVICE}/{method}")(metadata=(("x-api-key", key),), timeout=SOON_S)
    assert isinstance(await silent.read(), bytes)


def build_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def reset_rapidly(port: int, path: str, count: int) -> None:
    """Begin streams of HTTP/2 and reset each at once, as in CVE-2023-44487."""

    def literal(index: bytes, value: bytes) -> bytes:
        return index + bytes([len(value)]) + value

    fields = (
        literal(b"\x04", path.encode()) + literal(b"\x01", b"x") + literal(b"\x00\x0ccontent-type", b"application/grpc")
    )
    block = b"\x83\x86" + fields + literal(b"\x00\x02te", b"trailers")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + build_frame(4, 0, 0))
        threading.Thread(target=lambda: [None for _ in iter(lambda: read_some(link), b"")], daemon=True).start()
        for first in range(0, count, 50):
            streams = range(2 * first + 1, 2 * first + 101, 2)
            cancel = struct.pack(">I", 8)
            link.sendall(b"".join(build_frame(1, 4, n, block) + build_frame(3, 0, n, cancel) for n in streams))


def read_some(link: socket.socket) -> bytes:
    try:
        return link.recv(65536)
    except OSError:
        return b""


@pytest.mark.parametrize("path", [CHECK, f"/{SERVICE}/ModelInfer"])
async def test_streams_that_are_reset_at_once_keep_nobody_from_an_answer(gateway, replica, ring, path):
    _, bob = ring.add("bob", ("infer",))
    scene = await gateway(auth="keys")
    _, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", grpc=address)
    server, port = await serve_grpc(scene.app.state.gateway, "127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        flood = asyncio.create_task(asyncio.to_thread(reset_rapidly, port, path, 20_000))
        answered = 0
        while not flood.done() or answered < 5:
            answer = await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", bob),), timeout=SOON_S)
            answered += answer == ANSWER
            await asyncio.sleep(0.01)
        await flood
        assert scene.app.state.gateway.fair._services["svc"].in_flight == 0
    await server.stop(None)


async def test_idle_calls_of_one_tenant_leave_another_its_turn(fronted, ring):
    (_, alice), (_, bob) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    _, channel = await fronted(auth="keys")
    idle = open_idle(channel, f"/{SERVICE}/ModelInfer", 40, metadata=(("x-api-key", alice),))
    idle += open_idle(channel, f"/{SERVICE}/ModelStreamInfer", 16, metadata=(("x-api-key", alice),))
    await until_sent(idle)
    assert await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", bob),), timeout=SOON_S) == ANSWER
    await end(idle)


async def test_large_messages_for_the_gateway_itself_hold_memory_of_their_tenant(front, ring):
    _, key = ring.add("alice", ("infer",))
    scene, channel = await front(auth="keys")
    budget = scene.app.state.gateway.proxy.budget
    before, largest = budget.left, scene.app.state.gateway.settings.max_body_bytes
    idle = open_idle(channel, f"/{SERVICE}/RepositoryIndex", 1, metadata=(("x-api-key", key),))
    await until_sent(idle)
    await until(lambda: budget.left == before - largest, SOON_S)
    await end(idle)
    await until(lambda: budget.left == before, SOON_S)


async def test_so_many_calls_of_one_tenant_wait_to_be_read():
    reader = MessageReader(MemoryBudget(10), 10)
    async with reader.turn("alice", 1):
        turns = [reader.turn("alice", 60) for _ in range(MAX_WAITING_PER_TENANT + 3)]
        waiting = [asyncio.create_task(turn.__aenter__()) for turn in turns]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="limit"):
            await reader.turn("alice", 60).__aenter__()
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    async with reader.turn("alice", 0):
        assert reader.budget.left == 0


async def test_each_message_of_a_stream_passes_budget_place_and_ledger(fronted, ring):
    _, key = ring.add("alice", ("infer",))
    scene, channel = await fronted(auth="keys", max_body_bytes=4096)
    gateway, one = scene.app.state.gateway, scene.replica
    one.holds = asyncio.Event()
    before = gateway.proxy.budget.left
    stream = open_stream(channel, key)
    await stream.write(INFER)
    await asyncio.wait_for(one.reached.wait(), SOON_S)
    assert (gateway.proxy.budget.left, gateway.fair._services["svc"].in_flight) == (before - len(INFER), 1)
    one.holds.set()
    assert await stream.read() == ANSWER
    assert (gateway.fair._services["svc"].in_flight, scene.known.in_flight) == (0, 1)
    assert await exchange(stream) == ANSWER
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert (gateway.proxy.budget.left, scene.known.in_flight) == (before, 0)
    sums = {(tenant, model): sums["requests"] for (tenant, _, model), sums in gateway.usage._sums.items()}
    assert sums["alice", "pranet"] == 2.0


async def test_a_message_of_a_stream_that_finds_no_memory_ends_it(fronted, ring):
    (_, alice), (_, bob) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    scene, channel = await fronted(auth="keys", max_body_bytes=4096)
    budget = scene.app.state.gateway.proxy.budget
    stream = open_stream(channel, alice)
    assert await exchange(stream) == ANSWER
    assert budget.take(budget.left // 2 - 2 * len(INFER), "alice"), "what alice's bodies hold meanwhile"
    await stream.write(pb.ModelInferRequest(model_name="pranet", raw_input_contents=[b"x" * 4000]).SerializeToString())
    await refused(stream.read(), "no memory left")
    assert await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", bob),), timeout=SOON_S) == ANSWER


async def test_a_first_message_that_does_not_come_ends_a_stream(front):
    scene, channel = await front(body_read_timeout_s=0.1)
    await refused(open_stream(channel).read(), "did not arrive in time")
    assert scene.app.state.gateway.proxy.budget.left == 8 * 64 * 2**20
