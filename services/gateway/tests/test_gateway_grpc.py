"""The gRPC front before small real gRPC servers: what passes, what is answered here, who may call, who takes over."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.grpc import proxy, streams
from services.gateway.grpc.server import SERVICE
from services.gateway.tests.grpc_front import ANSWER, INFER, call, exchange, open_stream, refused
from shared.rpc import open_inference_pb2 as pb
from shared.telemetry import REQUESTS
from tests.harness.waiting import free_port, until


async def test_a_message_passes_untouched_to_the_model_that_it_names(fronted, replica):
    scene, channel = await fronted()
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", service="b", name="b", grpc=other, models=("other",))
    metadata = (("x-mine", "1"), ("authorization", "Bearer secret"), ("x-fovea-tenant", "someone"))
    assert await call(channel, "ModelInfer", INFER, metadata=metadata, timeout=5) == ANSWER
    method, sent, left = scene.replica.seen[0]
    assert method == f"/{SERVICE}/ModelInfer"
    assert (sent["x-mine"], sent["x-fovea-tenant"]) == ("1", "local")
    assert "authorization" not in sent
    assert {"x-request-id", "traceparent"} <= sent.keys()
    assert 3 < left <= 5.5
    by_name = pb.ModelMetadataRequest(name="other").SerializeToString()
    assert (await call(channel, "ModelMetadata", by_name)).startswith(b"two|")


async def test_replicas_are_reached_without_the_proxy_of_the_environment(fronted, monkeypatch):
    _, channel = await fronted()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert await call(channel, "ModelInfer", INFER) == ANSWER


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


async def test_each_message_of_a_stream_counts(fronted, ring):
    _, key = ring.add("alice", ("infer",), rate_per_minute=5)
    _, channel = await fronted(auth="keys")
    stream = open_stream(channel, key)
    for _ in range(6):
        await stream.write(INFER)
    await stream.done_writing()
    assert [await stream.read() for _ in range(5)] == [ANSWER] * 5
    assert (await refused(stream.read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await refused(call(channel, "ModelInfer", INFER, metadata=(("x-api-key", key),)))


async def test_one_tenant_has_so_many_streams_open(fronted, monkeypatch):
    monkeypatch.setattr(streams, "MAX_STREAMS_PER_TENANT", 1)
    _, channel = await fronted()
    first = open_stream(channel)
    assert await exchange(first) == ANSWER
    assert (await refused(open_stream(channel).read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()


async def test_a_replicas_error_passes_unchanged_and_memory_for_messages_is_given_back(fronted):
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
    await refused(stub.Check(health_pb2.HealthCheckRequest(service="nobody")), "no service")


async def test_calls_need_a_key_with_the_scope(fronted, ring):
    (_, good), (_, poor) = ring.add("ann", ("infer",), rate_per_minute=3), ring.add("ann", ("metrics",))
    scene, channel = await fronted(auth="keys")

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
    assert scene.replica.seen[0][1]["x-fovea-tenant"] == "ann"
    load = pb.RepositoryModelLoadRequest(model_name="pranet").SerializeToString()
    assert await code("RepositoryModelLoad", ("x-api-key", good), message=load) is grpc.StatusCode.PERMISSION_DENIED
    codes = [await code("ModelInfer", ("x-api-key", good)) for _ in range(4)]
    assert codes[-1] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_replica_that_is_not_ready_sends_us_to_the_next_and_is_believed_when_alone(fronted, replica):
    scene, channel = await fronted()
    scene.replica.fails = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    await refused(call(channel, "ModelInfer", INFER), "does not want")
    _, other, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", name="two", grpc=other).in_flight = 1
    assert (await call(channel, "ModelInfer", INFER)).startswith(b"two|")


async def test_calls_are_counted_by_their_status(fronted):
    scene, channel = await fronted()

    def count(status: str) -> float:
        return REQUESTS.labels("gateway", "", "grpc ModelInfer", status)._value.get()

    before = [count(status) for status in ("OK", "NOT_FOUND", "UNAVAILABLE")]
    await call(channel, "ModelInfer", INFER)
    await refused(call(channel, "ModelInfer", pb.ModelInferRequest(model_name="nobody").SerializeToString()))
    scene.replica.fails = [grpc.StatusCode.UNAVAILABLE] * 2
    await refused(call(channel, "ModelInfer", INFER, timeout=3))
    assert [count(status) for status in ("OK", "NOT_FOUND", "UNAVAILABLE")] == [one + 1 for one in before]


async def test_a_replica_that_is_gone_is_replaced_by_another_or_the_next(fronted, replica):
    scene, channel = await fronted()
    assert await call(channel, "ModelInfer", INFER) == ANSWER
    await scene.server.stop(None)
    asking = asyncio.create_task(call(channel, "ModelInfer", INFER, timeout=8))
    await asyncio.sleep(0.4)
    assert not asking.done()
    await replica("again", int(scene.known.record.grpc.rpartition(":")[2]))
    assert (await asking).startswith(b"again|")


async def test_no_replica_is_unavailable_and_a_deadline_is_kept(front, replica):
    scene, channel = await front()
    scene.announce("http://127.0.0.1:1", ready=False, grpc="127.0.0.1:1")
    assert (await refused(call(channel, "ModelInfer", INFER))).code() is grpc.StatusCode.UNAVAILABLE
    ready = await call(channel, "ModelReady", pb.ModelReadyRequest(name="pranet").SerializeToString())
    assert not pb.ModelReadyResponse.FromString(ready).ready
    slow, address, _ = await replica("slow")
    slow.sleep_s = 30
    scene.announce("http://127.0.0.1:1", grpc=address)
    late = await refused(call(channel, "ModelInfer", INFER, timeout=0.3))
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_caller_that_leaves_stops_the_replica(fronted):
    scene, channel = await fronted()
    scene.replica.sleep_s = 30
    asking = channel.unary_unary(f"/{SERVICE}/ModelInfer")(INFER)
    await until(lambda: scene.replica.seen)
    asking.cancel()
    await asyncio.wait_for(scene.replica.gone.wait(), 20)
    await until(lambda: scene.known.in_flight == 0)


async def test_a_live_stream_is_not_cut_and_a_silent_one_is(fronted, monkeypatch):
    monkeypatch.setattr("services.gateway.grpc.proxy.DEADLINE_GRACE_S", 0.1)
    _, channel = await fronted(request_timeout_s=0.3)
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    for _ in range(8):
        assert await exchange(stream) == ANSWER
        await asyncio.sleep(0.1)
    error = await refused(asyncio.wait_for(stream.read(), 5), "FOVEA_REQUEST_TIMEOUT_S")
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stream_begins_on_a_replica_that_can_be_reached(fronted, monkeypatch):
    monkeypatch.setattr(proxy, "CONNECT_TIMEOUT_S", 0.3)
    scene, channel = await fronted()
    scene.announce("http://127.0.0.1:1", name="dead", grpc=f"127.0.0.1:{free_port()}")
    scene.known.in_flight = 1
    stream = open_stream(channel)
    assert await exchange(stream) == ANSWER
    await stream.done_writing()


async def test_loading_reaches_every_replica(fronted, replica):
    scene, channel = await fronted()
    two, second, _ = await replica("two")
    scene.announce("http://127.0.0.1:1", name="two", grpc=second)
    await call(channel, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="pranet").SerializeToString())
    assert len(scene.replica.seen) == len(two.seen) == 1


async def test_statistics_of_all_models_are_joined(front, replica):
    scene, channel = await front()
    for name in ("one", "two"):
        made, address, _ = await replica(name)
        made.answer = pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name=name)]).SerializeToString()
        scene.announce("http://127.0.0.1:1", service=name, name=name, grpc=address, models=(name,))
    told = pb.ModelStatisticsResponse.FromString(await call(channel, "ModelStatistics"))
    assert sorted(stats.name for stats in told.model_stats) == ["one", "two"]
