"""Open Inference v2 over bare gRPC: health, reflection, ids, deadlines, cancellation, streams and refusals."""

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from shared import telemetry
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferCall
from shared.rpc.tests.oip_client import encode_message
from shared.serving.host import Host
from shared.serving.oip.grpc import map_in_order, serve_grpc
from shared.serving.oip.grpc_health_reflection import SERVICE
from shared.serving.tests.oip_mirrors import MIRRORS, Gate, limited, serving


@pytest.fixture(scope="module")
def replica():
    with serving() as running:
        yield running


@pytest.fixture
def channel(replica):
    with grpc.insecure_channel(replica.grpc) as opened:
        yield opened


def method(channel: Any, name: str, answer: Any, kind: str = "unary_unary") -> Any:
    def write(message: Any) -> bytes:
        return message if isinstance(message, bytes) else message.SerializeToString()

    return getattr(channel, kind)(f"/{SERVICE}/{name}", write, answer.FromString)


def refused(channel: Any, message: Any, **more: Any) -> Any:
    """The error that an inference ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "ModelInfer", pb.ModelInferResponse)(message, **more)
    return caught.value


def asks(model: str = "mirror/fp32", value: float = 1, **more: Any) -> pb.ModelInferRequest:
    return encode_message(InferCall(model, {"in": np.full((1, 2), value, np.float32)}, **more))


def test_ids_of_the_caller_reach_the_model_and_come_back_and_are_made_where_there_are_none(
    channel, replica, monkeypatch
):
    seen: list[telemetry.Context] = []
    host_infer = replica.host.infer

    def spy(*given: Any) -> Any:
        seen.append(telemetry.context())
        return host_infer(*given)

    monkeypatch.setattr(replica.host, "infer", spy)
    infer = method(channel, "ModelInfer", pb.ModelInferResponse)
    _, call = infer.with_call(
        asks(), metadata=[("x-request-id", "abc-7"), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")]
    )
    assert dict(call.trailing_metadata())["x-request-id"] == "abc-7"
    assert (seen[0].request_id, seen[0].service, seen[0].model) == ("abc-7", "mirrors", "mirror/fp32")
    assert seen[0].traceparent.split("-")[1] == "a" * 32
    _, call = infer.with_call(asks())
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 16


def test_a_sentence_longer_than_headers_may_be_is_cut_and_bytes_that_are_no_message_are_the_callers_fault(channel):
    error = refused(channel, asks("ä" * 50_000), metadata=[("x-request-id", "abc-7")])
    assert (error.code(), error.details().startswith("There is no model 'ää")) == (grpc.StatusCode.NOT_FOUND, True)
    assert dict(error.trailing_metadata())["x-request-id"] == "abc-7"
    assert 1990 < len(error.details().encode()) <= 2000
    error, told = (
        refused(channel, b"\xff\xff\xff"),
        "The message ends in the middle of a number, or the number has no end.",
    )
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, told)


def test_calls_are_counted_under_their_status_and_known_models_only(channel):
    infer, labels = method(channel, "ModelInfer", pb.ModelInferResponse), (("mirror/fp32", "OK"), ("", "NOT_FOUND"))

    def count() -> list[float]:
        facts = ({"service": "mirrors", "route": "grpc ModelInfer", "model": m, "status": s} for m, s in labels)
        return [telemetry.REQUESTS.labels(**each)._value.get() for each in facts]

    before = count()
    infer(asks())
    refused(channel, asks("invented-over-grpc"))
    assert count() == [each + 1 for each in before]
    assert b"invented-over-grpc" not in telemetry.render_metrics()[0]


def test_the_gateways_deadline_is_kept_and_nonsense_is_ignored(channel):
    infer = method(channel, "ModelInfer", pb.ModelInferResponse)
    for sent in ("soon", "-5", "nan"):
        assert infer(asks("slow"), metadata=[("x-fovea-deadline-ms", sent)]).model_name == "slow"
    error = refused(channel, asks("slow"), metadata=[("x-fovea-deadline-ms", "40")])
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@contextlib.asynccontextmanager
async def started(*, loads: bool = True, **more: Any) -> AsyncIterator[tuple[Host, grpc.aio.Channel]]:
    """A server of our own with two models: its host, and a channel to it."""
    settings = limited(**more)
    host = Host("mirrors", {name: MIRRORS[name] for name in ("mirror/fp32", "slow")}, settings)
    server, port = await serve_grpc(host, "127.0.0.1", 0, settings)
    if loads:
        await host.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield host, channel
    await server.stop(0)
    await host.stop()


async def test_a_cancelled_call_or_stream_leaves_the_queue_without_having_run():
    async def messages() -> AsyncIterator[pb.ModelInferRequest]:
        for columns in range(3, 8):  # of different shapes, so that they can't share a run
            yield encode_message(InferCall("slow", {"in": np.zeros((1, columns), np.float32)}))

    async with started(max_batch_size=3) as (host, channel):
        gate, infer = Gate(host, "slow"), method(channel, "ModelInfer", pb.ModelInferResponse)
        stream = method(channel, "ModelStreamInfer", pb.ModelStreamInferResponse, "stream_stream")
        first = infer(asks("slow"))
        await gate.holds(running=1, waiting=0)
        for ask, waiting in ((lambda: infer(asks("slow")), 1), (lambda: stream(messages()), 3)):
            call = ask()
            await gate.holds(running=1, waiting=waiting)  # no more than `max_batch_size` are read ahead
            call.cancel()
            await gate.holds(running=1, waiting=0)
        gate.open()
        assert ((await first).model_name, gate.engine.runs) == ("slow", [(1, 2)])


async def test_a_stream_shares_batches_keeps_order_and_names_the_request_of_an_error():
    async with started() as (host, channel):
        stream = method(channel, "ModelStreamInfer", pb.ModelStreamInferResponse, "stream_stream")
        call = stream(iter([asks("slow", i, id=str(i)) for i in range(6)]))
        told = [answer.infer_response.id async for answer in call]
        runs = host.servable("slow").engine.runs  # type: ignore[union-attr]
    assert (told, len(runs) < 6) == (list("012345"), True)
    async with started() as (_, channel):
        stream = method(channel, "ModelStreamInfer", pb.ModelStreamInferResponse, "stream_stream")
        told = [answer async for answer in stream(iter([asks("nobody", id="a"), b"\xff\xff", asks(id="b")]))]
    assert [answer.infer_response.id for answer in told] == ["a", "", "b"]
    for answer, words in zip(told, ("no model 'nobody'", "ends in the middle of a number", "^$"), strict=True):
        assert re.search(words, answer.error_message)


async def test_a_port_in_use_is_an_error_and_not_shared():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}") as caught:
            await serve_grpc(Host("mirrors", {}, limited()), "127.0.0.1", port, limited())
    assert caught.value.errno == errno.EADDRINUSE


async def test_health_follows_the_host():
    kinds, ask = health_pb2.HealthCheckResponse, health_pb2.HealthCheckRequest
    async with started(loads=False) as (host, channel):
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(ask(service=SERVICE))).status == kinds.NOT_SERVING
        assert (await health.Check(ask(service="grpc.health.v1.Health"))).status == kinds.SERVING
        watch = health.Watch(ask())
        assert (await watch.read()).status == kinds.NOT_SERVING
        await host.start()
        assert (await watch.read()).status == kinds.SERVING
        watch.cancel()
        assert (await health.Check(ask())).status == kinds.SERVING
        assert (await health.Watch(ask(service="nobody")).read()).status == kinds.SERVICE_UNKNOWN
        with pytest.raises(grpc.RpcError, check=lambda e: e.code() == grpc.StatusCode.NOT_FOUND):
            await health.Check(ask(service="nobody"))


def test_reflection_shows_the_public_names(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    assert set(database.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
    service = pool.FindServiceByName(SERVICE)
    assert {m.name for m in service.methods} >= {"ModelInfer", "ModelStreamInfer", "RepositoryIndex"}
    assert service.methods_by_name["ModelInfer"].input_type.full_name == "inference.ModelInferRequest"
    assert pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["backend"].number == 17


async def source(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_results_come_in_order_and_failures_in_their_turn():
    async def work(number: int) -> int:
        await asyncio.sleep((5 - number % 5) * 0.005)
        return number

    assert [n async for n in map_in_order(source(12), work, ahead=4)] == list(range(12))

    async def divide(number: int) -> int:
        return 1 // (2 - number)

    async def broken() -> AsyncIterator[int]:
        yield 0
        yield 1
        raise ConnectionError

    for numbers, error in ((source(5), ZeroDivisionError), (broken(), ConnectionError)):
        results = map_in_order(numbers, divide, ahead=4)
        assert [await anext(results), await anext(results)] == [0, 1]
        with pytest.raises(error):
            await anext(results)
