"""The gRPC front before small real gRPC servers: what passes, who may call, who takes over; and floods of calls."""

import asyncio
import contextlib
import itertools
import math
import socket
import struct
import threading
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Malformed, QueueFull
from services.gateway.grpc import health as grpc_health
from services.gateway.grpc import proxy, streams
from services.gateway.grpc.server import SERVICE
from services.gateway.grpc.streams import read_text_field
from services.gateway.policy.memory_budget import (
    MAX_READS_PER_TENANT,
    MAX_WAITING_PER_TENANT,
    MemoryBudget,
    MessageReader,
)
from services.gateway.tests.grpc_front import ANSWER, INFER, call, exchange, open_stream, refused
from shared.rpc import open_inference_pb2 as pb
from shared.telemetry import REQUESTS
from tests.harness.waiting import free_port, until


async def test_a_message_passes_untouched_and_by_no_proxy_to_the_model_that_it_names(fronted, replica, monkeypatch):
    scene, channel = await fronted()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # of the environment
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", service="b", name="b", grpc=other, models=("other",))
    metadata = (("x-mine", "1"), ("authorization", "Bearer secret"), ("x-fovea-tenant", "someone"))
    assert await call(channel, "ModelInfer", INFER, metadata=metadata, timeout=5) == ANSWER
    method, sent, left = scene.replica.seen[0]
    assert (method, sent["x-mine"], sent["x-fovea-tenant"]) == (f"/{SERVICE}/ModelInfer", "1", "local")
    assert ("authorization" in sent, {"x-request-id", "traceparent"} <= sent.keys()) == (False, True)
    assert 3 < left <= 5.5
    by_name = pb.ModelMetadataRequest(name="other").SerializeToString()
    assert (await call(channel, "ModelMetadata", by_name)).startswith(b"two|")


async def test_an_unknown_model_is_told_with_those_there_are_and_bytes_that_are_no_request_are_the_callers_fault(front):
    scene, channel = await front()
    scene.announce("http://127.0.0.1:1", grpc="127.0.0.1:1")
    nobody = pb.ModelInferRequest(model_name="nobody").SerializeToString()
    error = await refused(call(channel, "ModelInfer", nobody))
    assert (error.code(), "pranet" in error.details()) == (grpc.StatusCode.NOT_FOUND, True)
    ready = await call(channel, "ModelReady", pb.ModelReadyRequest(name="nobody").SerializeToString())
    assert not pb.ModelReadyResponse.FromString(ready).ready
    for message in (b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0b" * 1000, b"\x08"):
        assert (await refused(call(channel, "RepositoryIndex", message))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_each_message_of_a_stream_counts_and_one_tenant_has_so_many_streams_open(fronted, ring, monkeypatch):
    monkeypatch.setattr(streams, "MAX_STREAMS_PER_TENANT", 1)
    _, key = ring.add("alice", ("infer",), rate_per_minute=5)
    _, channel = await fronted(auth="keys")
    stream = open_stream(channel, key)
    for _ in range(6):
        await stream.write(INFER)
    await stream.done_writing()
    assert [await stream.read() for _ in range(5)] == [ANSWER] * 5
    assert (await refused(stream.read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await refused(call(channel, "ModelInfer", INFER, metadata=(("x-api-key", key),)))
    _, other = ring.add("bob", ("infer",))
    first = open_stream(channel, other)
    assert await exchange(first) == ANSWER
    assert (await refused(open_stream(channel, other).read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()


async def test_a_replicas_error_passes_unchanged_calls_are_counted_and_memory_for_messages_is_given_back(fronted):
    scene, channel = await fronted()
    budget = scene.app.state.gateway.proxy.budget
    before = budget.left
    await call(channel, "ModelInfer", INFER)
    (counted,) = scene.app.state.gateway.usage._sums
    assert counted[::2] == ("local", "pranet"), "without keys, too, as over HTTP"
    await refused(call(channel, "ModelInfer", b"\0" * 1000))
    await until(lambda: budget.left == before)
    scene.replica.fails = [grpc.StatusCode.INVALID_ARGUMENT]
    error = await refused(call(channel, "ModelInfer", INFER))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "one does not want to.")
    assert ("retry-after", "3") in tuple(error.trailing_metadata())
    scene, channel = await fronted()

    def count() -> list[float]:
        statuses = ("OK", "NOT_FOUND", "UNAVAILABLE")
        return [REQUESTS.labels("gateway", "", "grpc ModelInfer", status)._value.get() for status in statuses]

    before = count()
    await call(channel, "ModelInfer", INFER)
    await refused(call(channel, "ModelInfer", pb.ModelInferRequest(model_name="nobody").SerializeToString()))
    scene.replica.fails = [grpc.StatusCode.UNAVAILABLE] * 2
    await refused(call(channel, "ModelInfer", INFER, timeout=3))
    await until(lambda: count() == [one + 1 for one in before])  # a call is counted once its answer was sent


async def test_the_server_speaks_for_the_whole_fleet_and_so_many_calls_watch_its_health(front, toy, monkeypatch):
    scene, channel = await front()
    assert pb.ServerLiveResponse.FromString(await call(channel, "ServerLive")).live
    assert not pb.ServerReadyResponse.FromString(await call(channel, "ServerReady")).ready
    stub, kinds = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckResponse
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == kinds.NOT_SERVING
    watched = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watched.read()).status == kinds.NOT_SERVING
    scene.announce((await toy(documents={"models": {}})).url)
    assert (await watched.read()).status == kinds.SERVING
    watched.cancel()
    await refused(stub.Check(health_pb2.HealthCheckRequest(service="nobody")), "no service")
    assert pb.ServerReadyResponse.FromString(await call(channel, "ServerReady")).ready
    assert pb.ServerMetadataResponse.FromString(await call(channel, "ServerMetadata")).name == "fovea"
    index = pb.RepositoryIndexResponse.FromString(await call(channel, "RepositoryIndex"))
    assert [(m.name, m.state) for m in index.models] == [("pranet", "READY")]
    monkeypatch.setattr(grpc_health, "MAX_WATCHES", 3)
    scene, channel = await front()
    stub = health_pb2_grpc.HealthStub(channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    assert {(await one.read()).status for one in watching} == {kinds.NOT_SERVING}
    await refused(stub.Watch(health_pb2.HealthCheckRequest()).read(), "limit")
    scene.announce("http://127.0.0.1:1")
    assert {(await one.read()).status for one in watching} == {kinds.SERVING}
    assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=SOON_S)).status == kinds.SERVING
    await end(watching)


async def test_calls_need_a_key_with_the_scope(fronted, ring):
    (_, good), (_, poor) = ring.add("ann", ("infer",), rate_per_minute=3), ring.add("ann", ("metrics",))
    scene, channel = await fronted(auth="keys")

    async def code(method: str, *metadata: tuple[str, str], message: bytes = INFER) -> str:
        return (await refused(call(channel, method, message, metadata=metadata))).code().name

    await call(channel, "ServerLive")
    assert await code("ModelInfer") == "UNAUTHENTICATED"
    assert await code("ModelInfer", ("x-api-key", poor)) == "PERMISSION_DENIED"
    await call(channel, "ModelInfer", INFER, metadata=(("authorization", f"Bearer {good}"),))
    assert scene.replica.seen[0][1]["x-fovea-tenant"] == "ann"
    load = pb.RepositoryModelLoadRequest(model_name="pranet").SerializeToString()
    assert await code("RepositoryModelLoad", ("x-api-key", good), message=load) == "PERMISSION_DENIED"
    for _ in range(2):
        await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", good),))
    assert await code("ModelInfer", ("x-api-key", good)) == "RESOURCE_EXHAUSTED"


async def test_a_replica_that_is_gone_or_not_ready_is_replaced_by_the_next_or_another(fronted, replica):
    scene, channel = await fronted()
    assert await call(channel, "ModelInfer", INFER) == ANSWER
    await scene.server.stop(None)
    asking = asyncio.create_task(call(channel, "ModelInfer", INFER, timeout=8))
    await asyncio.sleep(0.4)
    assert not asking.done()
    again, _, _ = await replica("again", int(scene.known.record.grpc.rpartition(":")[2]))
    assert (await asking).startswith(b"again|")
    again.fails = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    await refused(call(channel, "ModelInfer", INFER), "does not want")
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", name="two", grpc=other).in_flight = 1
    assert (await call(channel, "ModelInfer", INFER)).startswith(b"two|")


async def test_a_call_to_a_replica_that_is_silent_and_hangs_is_answered_by_another(fronted, replica):
    scene, channel = await fronted()
    scene.replica.sleep_s = 60
    asking = asyncio.create_task(call(channel, "ModelInfer", INFER, timeout=20))
    await until(lambda: scene.known.attempts)
    scene.known.changed = -math.inf
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", name="two", grpc=other)
    scene.registry._abort_hung()
    assert (await asking).startswith(b"two|")


async def test_calls_end_at_replicas_that_have_withdrawn_while_new_ones_are_found(fronted, replica):
    """As in a rolling update: two replicas finish what they have begun, and calls come to their successors at once."""
    scene, channel = await fronted()
    old, address, _ = await replica("old")
    scene.announce("http://127.0.0.1:1", name="old", grpc=address)
    scene.replica.sleep_s = old.sleep_s = 1.0
    running = [asyncio.create_task(call(channel, "ModelInfer", INFER, timeout=20)) for _ in range(2)]
    await until(lambda: scene.replica.seen and old.seen)
    scene.registry._services["svc"].replicas.clear()
    for name in ("three", "four"):
        _, address, _ = await replica(name)
        scene.announce("http://127.0.0.1:1", name=name, grpc=address)
    later = await asyncio.gather(*(call(channel, "ModelInfer", INFER, timeout=20) for _ in range(4)))
    assert {answer.partition(b"|")[0] for answer in later} <= {b"three", b"four"}
    assert {answer.partition(b"|")[0] for answer in await asyncio.gather(*running)} == {b"one", b"old"}


async def test_no_replica_is_unavailable_a_deadline_is_kept_and_a_caller_that_leaves_stops_the_replica(front, replica):
    scene, channel = await front()
    scene.announce("http://127.0.0.1:1", ready=False, grpc="127.0.0.1:1")
    assert (await refused(call(channel, "ModelInfer", INFER))).code() is grpc.StatusCode.UNAVAILABLE
    ready = await call(channel, "ModelReady", pb.ModelReadyRequest(name="pranet").SerializeToString())
    assert not pb.ModelReadyResponse.FromString(ready).ready
    slow, address, _ = await replica("slow")
    slow.sleep_s = 30
    known = scene.announce("http://127.0.0.1:1", grpc=address)
    late = await refused(call(channel, "ModelInfer", INFER, timeout=0.3))
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    slow.seen.clear()
    slow.gone.clear()
    asking = channel.unary_unary(f"/{SERVICE}/ModelInfer")(INFER)
    await until(lambda: slow.seen)
    asking.cancel()
    await asyncio.wait_for(slow.gone.wait(), 20)
    await until(lambda: known.in_flight == 0)


async def test_a_live_stream_is_not_cut_and_a_silent_one_is_and_it_begins_where_it_can(fronted, monkeypatch):
    monkeypatch.setattr(proxy, "DEADLINE_GRACE_S", 0.1)
    _, channel = await fronted(request_timeout_s=0.3)
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    for _ in range(8):
        assert await exchange(stream) == ANSWER
        await asyncio.sleep(0.1)
    error = await refused(asyncio.wait_for(stream.read(), 5), "FOVEA_REQUEST_TIMEOUT_S")
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    monkeypatch.setattr(proxy, "CONNECT_TIMEOUT_S", 0.3)
    scene, channel = await fronted()
    scene.announce("http://127.0.0.1:1", name="dead", grpc=f"127.0.0.1:{free_port()}")
    scene.known.in_flight = 1
    assert await exchange(open_stream(channel)) == ANSWER


async def test_loading_reaches_every_replica_and_statistics_of_all_models_are_joined(fronted, replica, front):
    scene, channel = await fronted()
    two, second, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", name="two", grpc=second)
    await call(channel, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="pranet").SerializeToString())
    assert len(scene.replica.seen) == len(two.seen) == 1
    scene, channel = await front()
    for name in ("one", "two"):
        made, address, _ = await replica(name)
        made.answer = pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name=name)]).SerializeToString()
        scene.announce("http://127.0.0.1:1", service=name, name=name, grpc=address, models=(name,))
    told = pb.ModelStatisticsResponse.FromString(await call(channel, "ModelStatistics"))
    assert sorted(stats.name for stats in told.model_stats) == ["one", "two"]


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


async def test_a_message_without_a_key_has_a_name_at_most_and_one_that_does_not_matter_is_not_read(front, ring):
    _, key = ring.add("alice", ("infer",))
    _, channel = await front(auth="keys")
    await refused(channel.unary_unary(CHECK)(b"x" * 2000), "at most 1,024 bytes")
    for method in ("ServerLive", "ServerReady", "ServerMetadata"):
        silent = channel.stream_stream(f"/{SERVICE}/{method}")(metadata=(("x-api-key", key),), timeout=SOON_S)
        assert isinstance(await silent.read(), bytes), method


def build_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def reset_rapidly(port: int, path: str, count: int) -> None:
    """Begin streams of HTTP/2 and reset each at once, as in CVE-2023-44487."""

    def literal(index: bytes, value: bytes) -> bytes:
        return index + bytes([len(value)]) + value

    fields = literal(b"\x04", path.encode()) + literal(b"\x01", b"x")
    fields += literal(b"\x00\x0ccontent-type", b"application/grpc") + literal(b"\x00\x02te", b"trailers")
    block = b"\x83\x86" + fields
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + build_frame(4, 0, 0))
        threading.Thread(target=lambda: [None for _ in iter(lambda: read_some(link), b"")], daemon=True).start()
        for first in range(0, count, 50):
            streams, cancel = range(2 * first + 1, 2 * first + 101, 2), struct.pack(">I", 8)
            link.sendall(b"".join(build_frame(1, 4, n, block) + build_frame(3, 0, n, cancel) for n in streams))


def read_some(link: socket.socket) -> bytes:
    try:
        return link.recv(65536)
    except OSError:
        return b""


@pytest.mark.parametrize("path", [CHECK, f"/{SERVICE}/ModelInfer"])
async def test_streams_that_are_reset_at_once_keep_nobody_from_an_answer(fronted, ring, path):
    _, bob = ring.add("bob", ("infer",))
    scene, channel = await fronted(auth="keys")
    flood = asyncio.create_task(asyncio.to_thread(reset_rapidly, scene.grpc_port, path, 20_000))
    answered = 0
    while not flood.done() or answered < 5:
        answer = await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", bob),), timeout=SOON_S)
        answered += answer == ANSWER
        await asyncio.sleep(0.01)
    await flood
    assert scene.app.state.gateway.fair._services["svc"].in_flight == 0


async def test_idle_calls_of_one_tenant_leave_another_its_turn_and_large_ones_hold_its_memory(fronted, front, ring):
    (_, alice), (_, bob) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    _, channel = await fronted(auth="keys")
    idle = open_idle(channel, f"/{SERVICE}/ModelInfer", 40, metadata=(("x-api-key", alice),))
    idle += open_idle(channel, f"/{SERVICE}/ModelStreamInfer", 16, metadata=(("x-api-key", alice),))
    await until_sent(idle)
    assert await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", bob),), timeout=SOON_S) == ANSWER
    await end(idle)
    _, key = ring.add("alice", ("infer",))
    scene, channel = await front(auth="keys")
    budget = scene.app.state.gateway.proxy.budget
    before, largest = budget.left, scene.app.state.gateway.settings.max_body_bytes
    idle = open_idle(channel, f"/{SERVICE}/RepositoryIndex", 1, metadata=(("x-api-key", key),))
    await until_sent(idle)
    await until(lambda: budget.left == before - largest, SOON_S)
    await end(idle)
    await until(lambda: budget.left == before, SOON_S)


async def test_messages_are_read_in_turns_within_the_budget_and_so_many_calls_of_one_tenant_wait():
    budget = MemoryBudget(100)
    reader = MessageReader(budget, 10)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_READS_PER_TENANT):
            await stack.enter_async_context(reader.turn("alice", 0))
        with pytest.raises(QueueFull):
            await stack.enter_async_context(reader.turn("alice", 0.01))
        await stack.enter_async_context(reader.turn("bob", 0))
        assert budget.left == 100 - 10 * (MAX_READS_PER_TENANT + 1)
        waiting = [asyncio.create_task(reader.turn("alice", 60).__aenter__()) for _ in range(MAX_WAITING_PER_TENANT)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="limit"):
            await reader.turn("alice", 60).__aenter__()
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert budget.left == 100
    async with reader.turn("alice", 0):
        assert budget.left == 90


async def test_each_message_of_a_stream_passes_budget_place_and_ledger(fronted, ring):
    _, key = ring.add("alice", ("infer",))
    scene, channel = await fronted(auth="keys", max_body_bytes=4096)
    gateway, one = scene.app.state.gateway, scene.replica
    one.holds = asyncio.Event()
    before, stream = gateway.proxy.budget.left, open_stream(channel, key)
    await stream.write(INFER)
    await asyncio.wait_for(one.reached.wait(), SOON_S)
    assert (gateway.proxy.budget.left, gateway.fair._services["svc"].in_flight) == (before - len(INFER), 1)
    one.holds.set()
    assert (await stream.read(), gateway.fair._services["svc"].in_flight, scene.known.in_flight) == (ANSWER, 0, 1)
    assert await exchange(stream) == ANSWER
    await stream.done_writing()
    assert (await stream.read() is grpc.aio.EOF, gateway.proxy.budget.left, scene.known.in_flight) == (True, before, 0)
    sums = {(tenant, model): sums["requests"] for (tenant, _, model), sums in gateway.usage._sums.items()}
    assert sums["alice", "pranet"] == 2.0


async def test_a_message_of_a_stream_that_finds_no_memory_or_does_not_come_ends_it(fronted, ring, front):
    (_, alice), (_, bob) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    scene, channel = await fronted(auth="keys", max_body_bytes=4096)
    budget, stream = scene.app.state.gateway.proxy.budget, open_stream(channel, alice)
    assert await exchange(stream) == ANSWER
    assert budget.take(budget.left // 2 - 2 * len(INFER), "alice"), "what alice's bodies hold meanwhile"
    await stream.write(pb.ModelInferRequest(model_name="pranet", raw_input_contents=[b"x" * 4000]).SerializeToString())
    await refused(stream.read(), "no memory left")
    assert await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", bob),), timeout=SOON_S) == ANSWER
    scene, channel = await front(body_read_timeout_s=0.1)
    await refused(open_stream(channel).read(), "did not arrive in time")
    assert scene.app.state.gateway.proxy.budget.left == 8 * 64 * 2**20


@given(name=st.text(max_size=50), version=st.text(max_size=5), raw=st.binary(max_size=200), rank=st.integers(0, 2**40))
def test_the_name_is_what_the_message_says(name, version, raw, rank):
    message = pb.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[raw])
    message.parameters["priority"].int64_param = rank
    assert read_text_field(message.SerializeToString(), 1) == name


def test_fields_before_the_name_are_stepped_over_and_an_empty_message_has_none():
    message = pb.RepositoryModelLoadRequest(repository_name="somewhere", model_name="pranet")
    assert read_text_field(message.SerializeToString(), 2) == "pranet"
    assert read_text_field(b"\x08\x96\x01" + b"\x15abcd" + b"\x19abcdefgh" + b"\x2a\x02hi", 5) == "hi"
    assert read_text_field(b"", 1) == ""


def test_what_is_no_message_or_no_text_is_malformed():
    for bad in (b"\x0a\x02\xff\xfe", b"\x0a\xff", b"\x15ab", b"\x0a\xff\xff\xff\xff\x7f"):
        with pytest.raises(Malformed):
            read_text_field(bad, 1)


@given(st.binary(max_size=100))
def test_any_bytes_give_a_name_or_malformed(message):
    with contextlib.suppress(Malformed):
        assert isinstance(read_text_field(message, 1), str)
