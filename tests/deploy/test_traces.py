"""One trace from the gateway's socket to the engine, over HTTP and gRPC, and a link from a request to its job's run.

Real processes (gateway, a toy replica, one of llm-longctx on a tiny model, which does its jobs), a real Redis, and
spans as they come to a collector over OTLP.
"""

import contextlib
import gzip
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.llm_longctx.tests.conftest import MODEL, write_folder
from shared.rpc import open_inference_pb2 as pb
from shared.settings import environment
from tests.deploy.tools import Processes, run_platform
from tests.harness.serving import serve_in_thread
from tests.harness.waiting import free_port, wait_until

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
CALLER = ("c" * 32, "d" * 16)
METHOD = "streamingllm"
SAY = {"messages": [{"role": "user", "content": "Hello, who are you?"}], "max_tokens": 12}
PROTOBUF = "application/x-protobuf"


class CollectedSpan(NamedTuple):
    """One span as it came over the wire; `service` is of its resource."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    seconds: float


class Collector:
    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.endpoint = ""

    async def _take(self, request: Request) -> Response:
        assert request.headers["content-type"] == PROTOBUF
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.spans += read_spans(otlp.ExportTraceServiceRequest.FromString(body))
        return Response(otlp.ExportTraceServiceResponse().SerializeToString(), media_type=PROTOBUF)

    def of_trace(self, trace: str) -> list[CollectedSpan]:
        return sorted((one for one in self.spans if one.trace == trace), key=lambda one: -one.seconds)

    @contextlib.contextmanager
    def serve(self) -> Iterator["Collector"]:
        with serve_in_thread(Starlette(routes=[Route("/v1/traces", self._take, methods=["POST"])])) as self.endpoint:
            yield self


def read_spans(request: otlp.ExportTraceServiceRequest) -> Iterator[CollectedSpan]:
    for resource in request.resource_spans:
        service = _plain(resource.resource.attributes).get("service.name", "")
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield CollectedSpan(
                service=service, name=span.name, kind=span.kind, trace=span.trace_id.hex(), id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                attributes=_plain(span.attributes), seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
            )  # fmt: skip


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class Platform:
    """The processes and the collector that they report to."""

    def __init__(self, folder, redis_url, collector):
        self.collector = collector
        self.http, self.grpc = free_port(), free_port()
        self.processes = Processes(folder)
        model = write_folder(folder / MODEL)
        env = environment(
            FOVEA_REDIS_URL=redis_url, FOVEA_DATA_DIR=str(folder), FOVEA_LLM_MODEL=str(model),
            FOVEA_LLM_FIDELITY_SAMPLE_RATE="1", FOVEA_HTTP_PORT=str(self.http), FOVEA_GRPC_PORT=str(self.grpc),
            FOVEA_INTRA_OP_THREADS="1", FOVEA_SHUTDOWN_GRACE_S="1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            FOVEA_JOBS_IN_REPLICA="1", OTEL_BSP_SCHEDULE_DELAY="200", PYTHONPATH=os.pathsep.join(sys.path),
        )  # fmt: skip
        for words in ("services.gateway", "shared.serving.tests.toy_replica", "shared.serving llm-longctx"):
            self.processes.start([sys.executable, "-m", *words.split()], env)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http}"

    def is_ready(self):
        with contextlib.suppress(httpx2.TransportError):
            found = httpx2.get(f"{self.url}/readyz", timeout=5).json()["services"]
            return len(found) == 2 and all(one["ready"] for one in found.values())
        return False

    def find(self, what, trace=None):
        def look():
            return [s for s in self.collector.spans if trace in {None, s.trace} and what(s)]

        return wait_until(look, 30, "the span is collected")[0]

    def children_of(self, span):
        return {s.name: s for s in self.collector.of_trace(span.trace) if s.parent == span.id}


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    with (
        Collector().serve() as collector,
        run_platform(tmp_path_factory, lambda *where: Platform(*where, collector)) as made,
    ):
        yield made


def test_a_chat_is_one_trace_from_the_socket_to_the_engine(platform):
    trace, caller = CALLER
    body = {**SAY, "longctx": {"method": METHOD}}
    headers = {"traceparent": f"00-{trace}-{caller}-01"}
    answer = httpx2.post(f"{platform.url}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    assert "usage" in answer, answer
    usage = answer["usage"]

    platform.find(lambda s: s.name == "compare with dense", trace)
    gateway = platform.find(lambda s: s.service == "fovea-gateway" and s.kind == SERVER, trace)
    assert (gateway.parent, gateway.name) == (caller, "POST /v1/chat/completions")
    assert gateway.attributes["http.response.status_code"] == 200
    inside = platform.children_of(gateway)
    assert inside.keys() >= {"authenticate", "POST /v1/chat/completions"}
    sent = inside["POST /v1/chat/completions"]
    assert (sent.kind, sent.attributes["fovea.service"]) == (CLIENT, "llm-longctx")
    replica = platform.children_of(sent)["POST /v1/chat/completions"]
    assert (replica.service, replica.kind) == ("fovea-llm-longctx", SERVER)
    chat = platform.children_of(replica)[f"chat {MODEL}"]
    assert platform.children_of(chat).keys() >= {"queue", "prefill", "decode", "compare with dense"}

    found = chat.attributes
    assert (found["gen_ai.operation.name"], found["gen_ai.request.model"]) == ("chat", MODEL)
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 12
    assert (found["gen_ai.request.max_tokens"], found["gen_ai.response.finish_reasons"]) == (12, ["length"])
    assert found["gen_ai.response.id"] == answer["id"]
    assert 0 < found["gen_ai.response.time_to_first_chunk"] < chat.seconds
    assert (found["fovea.method"], found["fovea.fidelity.verdict"]) == (METHOD, "trusted")
    assert found["fovea.kv_bytes"] == usage["longctx"]["kv_bytes"] > 0
    assert found["fovea.density"] == usage["longctx"]["prefill_density"]
    assert 0 <= platform.children_of(chat)["compare with dense"].attributes["fovea.fidelity.agreement"] <= 1
    assert not any("Hello" in str(v) for s in platform.collector.of_trace(trace) for v in s.attributes.values())


def test_a_job_is_a_trace_of_its_own_linked_to_the_request_that_was_accepted(platform):
    with httpx2.Client(base_url=platform.url, timeout=60) as client:
        job = client.post("/v1/chat/completions", json=SAY, headers={"prefer": "respond-async"}).json()
        path = f"/v1/jobs/{job['id']}"
        ended = {"succeeded", "failed"}
        done = wait_until(lambda: (now := client.get(path).json())["status"] in ended and now, 90, "the job ends")
    assert done["status"] == "succeeded", done
    run = platform.find(lambda s: s.kind == CONSUMER and s.attributes["messaging.message.id"] == job["id"])
    sent = platform.find(lambda s: s.kind == PRODUCER and s.attributes["messaging.message.id"] == job["id"])
    assert (run.name, run.parent, run.links) == ("process llm-longctx", "", ((sent.trace, sent.id),))
    assert run.trace != sent.trace
    assert sent.service == "fovea-gateway"
    served = platform.find(lambda s: s.kind == SERVER and s.parent == run.id)
    chat = platform.find(lambda s: s.parent == served.id)
    assert chat.name == f"chat {MODEL}"
    assert platform.children_of(chat).keys() >= {"queue", "prefill", "decode"}


def test_a_grpc_call_is_one_trace_to_the_batch(platform):
    trace, caller = "e" * 32, "f" * 16
    message = pb.ModelInferRequest(model_name="toy/echo")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
    with grpc.insecure_channel(f"127.0.0.1:{platform.grpc}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        metadata = (("traceparent", f"00-{trace}-{caller}-01"),)
        body, ended = call.with_call(message.SerializeToString(), metadata=metadata, timeout=30)
    assert pb.ModelInferResponse.FromString(body).model_name == "toy/echo"
    name = "inference.GRPCInferenceService/ModelInfer"
    gateway = platform.find(lambda s: s.kind == SERVER and s.service == "fovea-gateway", trace)
    assert (gateway.name, gateway.parent, gateway.attributes["rpc.response.status_code"]) == (name, caller, "OK")
    assert gateway.attributes["fovea.request_id"] == dict(ended.trailing_metadata())["x-request-id"]
    replica = platform.find(lambda s: s.kind == SERVER and s.service == "fovea-toy", trace)
    sent = platform.children_of(gateway)[name]
    assert (sent.kind, replica.parent) == (CLIENT, sent.id)
    inside = platform.children_of(replica)
    assert inside.keys() >= {"preprocess", "queue", "batch", "postprocess"}
    assert inside["batch"].attributes["fovea.batch.size"] == 1


def test_probes_and_scrapes_are_not_traced(platform):
    probed = {"/livez", "/readyz", "/metrics"}
    for path in probed:
        httpx2.get(f"{platform.url}{path}")
    assert httpx2.get(f"{platform.url}/v1/models").status_code == 200
    platform.find(lambda s: s.name == "GET /v1/models")
    assert not probed & {span.attributes.get("url.path") for span in platform.collector.spans}
