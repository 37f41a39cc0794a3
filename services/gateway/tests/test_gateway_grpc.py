"""The gRPC front before small real gRPC servers: what passes, what is answered here, who may call, who takes over."""

import asyncio
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.grpc import proxy, streams
from services.gateway.grpc.server import SERVICE
from services.gateway.policy.auth import KeyRing
from services.gateway.tests.grpc_front import INFER, call
from shared.rpc import open_inference_pb2 as pb
from tests.harness.waiting import until


async def test_a_message_passes_untouched_to_the_model_that_it_names(front, replica):
    scene, channel = await front()
    one, address, _ = await replica("one")
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", service="a", name="a", grpc=address)
    scene.announce("http://127.0.0.1:1", service="b", name="b", grpc=other, models=("other",))
    metadata = (("x-mine", "1"), ("authorization", "Bearer secret"), ("x-fovea-tenant", "someone"))
    assert await call(channel, "ModelInfer", INFER, metadata=metadata, timeout=5) == b"one|" + INFER
    method, sent, left = one.seen[0]
    assert method == f"/{SERVICE}/ModelInfer"
    assert (sent["x-mine"], sent["x-fovea-tenant"]) == ("1", "local")
    assert "authorization" not in sent
    assert {"x-request-id", "traceparent"} <= sent.keys()
    assert 3 < left <= 5.5
    by_name = pb.ModelMetadataRequest(name="other").SerializeToString()
    assert (await call(channel, "ModelMetadata", by_name)).startswith(b"two|")


async def test_an_unknown_model_is_told_with_those_there_are(front, replica):
    scene, channel = await front()
    scene.announce("http://127.0.0.1:1", grpc="127.0.0.1:1")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "ModelInfer", pb.ModelInferRequest(model_name="nobody").SerializeToString())
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert "pranet" in failed.value.details()
    ready = await call(channel, "ModelReady", pb.ModelReadyRequest(name="nobody").SerializeToString())
    assert not pb.ModelReadyResponse.FromString(ready).ready


@pytest.mark.parametrize("message", [b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0b" * 1000, b"\x08"])
async def test_bytes_that_are_no_request_are_the_callers_fault(front, message):
    _, channel = await front()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "RepositoryIndex", message)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_each_message_of_a_stream_counts(front, replica, tmp_path):
    _, key = KeyRing(tmp_path / "keys.json").add("alice", ("infer",), rate_per_minute=5)
    scene, channel = await front(auth="keys")
    _, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", grpc=address)
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    open_stream = stream(metadata=(("x-api-key", key),), timeout=10)
    for _ in range(6):
        await open_stream.write(INFER)
    await open_stream.done_writing()
    answers = [await open_stream.read() for _ in range(5)]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await open_stream.read()
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answers == [b"one|" + INFER] * 5
    with pytest.raises(grpc.aio.AioRpcError):
        await call(channel, "ModelInfer", INFER, metadata=(("x-api-key", key),))


async def test_one_tenant_has_so_many_streams_open(front, replica, monkeypatch):
    monkeypatch.setattr(streams, "MAX_STREAMS_PER_TENANT", 1)
    scene, channel = await front()
    _, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", grpc=address)
    method = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    first = method(timeout=10)
    await first.write(INFER)
    assert await first.read() == b"one|" + INFER
    second = method(timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await second.read()
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()


async def test_memory_for_messages_is_given_back(front, replica):
    scene, channel = await front()
    _, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", grpc=address)
    budget = scene.app.state.gateway.proxy.budget
    before = budget.left
    await call(channel, "ModelInfer", INFER)
    with pytest.raises(grpc.aio.AioRpcError):
        await call(channel, "ModelInfer", b"\0" * 1000)
    await until(lambda: budget.left == before)


async def test_the_server_speaks_for_the_whole_fleet(front, toy):
    scene, channel = await front()
    assert pb.ServerLiveResponse.FromString(await call(channel, "ServerLive")).live
    assert not pb.ServerReadyResponse.FromString(await call(channel, "ServerReady")).ready
    scene.announce((await toy(documents={"models": {}})).url)
    assert pb.ServerReadyResponse.FromString(await call(channel, "ServerReady")).ready
    assert pb.ServerMetadataResponse.FromString(await call(channel, "ServerMetadata")).name == "fovea"
    index = pb.RepositoryIndexResponse.FromString(await call(channel, "RepositoryIndex"))
    assert [(m.name, m.state) for m in index.models] == [("pranet", "READY")]


async def test_health_follows_readiness(front):
    scene, channel = await front()
    stub = health_pb2_grpc.HealthStub(channel)
    kinds = health_pb2.HealthCheckResponse
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == kinds.NOT_SERVING
    watched = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watched.read()).status == kinds.NOT_SERVING
    scene.announce("http://127.0.0.1:1")
    assert (await watched.read()).status == kinds.SERVING
    watched.cancel()
    with pytest.raises(grpc.aio.AioRpcError, match="no service"):
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))


async def test_calls_need_a_key_with_the_scope(front, replica, tmp_path):
    ring = KeyRing(tmp_path / "keys.json")
    (_, good), (_, poor) = ring.add("ann", ("infer",), rate_per_minute=3), ring.add("ann", ("metrics",))
    scene, channel = await front(auth="keys")
    one, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", grpc=address)

    async def code(method: str, *metadata: tuple[str, str], message: bytes = INFER) -> Any:
        try:
            await call(channel, method, message, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return None

    assert await code("ServerLive") is None
    assert await code("ModelInfer") is grpc.StatusCode.UNAUTHENTICATED
    assert await code("ModelInfer", ("x-api-key", poor)) is grpc.StatusCode.PERMISSION_DENIED
    assert await code("ModelInfer", ("authorization", f"Bearer {good}")) is None
    assert one.seen[0][1]["x-fovea-tenant"] == "ann"
    load = pb.RepositoryModelLoadRequest(model_name="pranet").SerializeToString()
    assert await code("RepositoryModelLoad", ("x-api-key", good), message=load) is grpc.StatusCode.PERMISSION_DENIED
    codes = [await code("ModelInfer", ("x-api-key", good)) for _ in range(4)]
    assert codes[-1] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_replicas_error_passes_unchanged(front, replica):
    scene, channel = await front()
    one, address, _ = await replica("one")
    one.fails = [grpc.StatusCode.INVALID_ARGUMENT]
    scene.announce("http://127.0.0.1:1", grpc=address)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "ModelInfer", INFER)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "one does not want to.")
    assert ("retry-after", "3") in tuple(failed.value.trailing_metadata())


async def test_a_replica_that_is_not_ready_sends_us_to_the_next_and_is_believed_when_alone(front, replica):
    scene, channel = await front()
    one, address, _ = await replica("one")
    one.fails = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    scene.announce("http://127.0.0.1:1", name="one", grpc=address)
    with pytest.raises(grpc.aio.AioRpcError, match="does not want"):
        await call(channel, "ModelInfer", INFER)
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", name="two", grpc=other).in_flight = 1
    assert (await call(channel, "ModelInfer", INFER)).startswith(b"two|")


async def test_a_replica_that_is_gone_is_replaced_by_another_or_the_next(front, replica):
    scene, channel = await front()
    _, address, server = await replica("one")
    port = int(address.rpartition(":")[2])
    scene.announce("http://127.0.0.1:1", name="one", grpc=address)
    assert (await call(channel, "ModelInfer", INFER)).startswith(b"one|")
    await server.stop(None)
    asking = asyncio.create_task(call(channel, "ModelInfer", INFER, timeout=8))
    await asyncio.sleep(0.4)
    assert not asking.done()
    await replica("again", port)
    assert (await asking).startswith(b"again|")


async def test_no_replica_is_unavailable_and_a_deadline_is_kept(front, replica):
    scene, channel = await front()
    scene.announce("http://127.0.0.1:1", ready=False, grpc="127.0.0.1:1")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "ModelInfer", INFER)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    ready = await call(channel, "ModelReady", pb.ModelReadyRequest(name="pranet").SerializeToString())
    assert not pb.ModelReadyResponse.FromString(ready).ready
    slow, address, _ = await replica("slow")
    slow.sleep_s = 30
    scene.announce("http://127.0.0.1:1", grpc=address)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "ModelInfer", INFER, timeout=0.3)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_caller_that_leaves_stops_the_replica(front, replica):
    scene, channel = await front()
    slow, address, _ = await replica("slow")
    slow.sleep_s = 30
    replica = scene.announce("http://127.0.0.1:1", grpc=address)
    asking = channel.unary_unary(f"/{SERVICE}/ModelInfer")(INFER)
    await until(lambda: slow.seen)
    asking.cancel()
    await asyncio.wait_for(slow.gone.wait(), 20)
    await until(lambda: replica.in_flight == 0)


async def test_a_live_stream_is_not_cut_and_a_silent_one_is(front, replica, monkeypatch):
    monkeypatch.setattr("services.gateway.grpc.proxy.DEADLINE_GRACE_S", 0.1)
    scene, channel = await front(request_timeout_s=0.3)
    _, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", grpc=address)
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    for _ in range(8):
        await stream.write(INFER)
        assert await stream.read() == b"one|" + INFER
        await asyncio.sleep(0.1)
    with pytest.raises(grpc.aio.AioRpcError, match="FOVEA_REQUEST_TIMEOUT_S") as failed:
        await asyncio.wait_for(stream.read(), 5)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_streams_pass_message_by_message(front, replica):
    scene, channel = await front()
    _, address, _ = await replica("one")
    replica = scene.announce("http://127.0.0.1:1", grpc=address)
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    for _ in range(3):
        await stream.write(INFER)
        assert await stream.read() == b"one|" + INFER
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert replica.in_flight == 0


async def test_a_stream_begins_on_a_replica_that_can_be_reached(front, replica, monkeypatch):
    monkeypatch.setattr(proxy, "CONNECT_TIMEOUT_S", 0.3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
    scene, channel = await front()
    _, address, _ = await replica("one")
    scene.announce("http://127.0.0.1:1", name="dead", grpc=dead)
    scene.announce("http://127.0.0.1:1", name="one", grpc=address).in_flight = 1
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    await stream.write(INFER)
    assert await stream.read() == b"one|" + INFER
    await stream.done_writing()


async def test_loading_reaches_every_replica(front, replica):
    scene, channel = await front()
    (one, first, _), (two, second, _) = await replica("one"), await replica("two")
    scene.announce("http://127.0.0.1:1", name="one", grpc=first)
    scene.announce("http://127.0.0.1:1", name="two", grpc=second)
    await call(channel, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="pranet").SerializeToString())
    assert len(one.seen) == len(two.seen) == 1


async def test_statistics_of_all_models_are_joined(front, replica):
    scene, channel = await front()
    for name in ("one", "two"):
        made, address, _ = await replica(name)
        made.answer = pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name=name)]).SerializeToString()
        scene.announce("http://127.0.0.1:1", service=name, name=name, grpc=address, models=(name,))
    told = pb.ModelStatisticsResponse.FromString(await call(channel, "ModelStatistics"))
    assert sorted(stats.name for stats in told.model_stats) == ["one", "two"]
