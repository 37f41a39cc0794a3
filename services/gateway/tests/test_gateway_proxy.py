"""The proxy over real sockets: what crosses it and what does not, who goes away, and the spans of a request."""

import asyncio
import contextlib
import json
import random

import httpx2
import pytest

from shared.tests.recorded_spans import is_child, recorded_spans  # noqa: F401  # a fixture


async def test_a_request_reaches_the_replica_and_its_answer_comes_back(served):
    scene = await served()
    answer = await scene.client.post("/v1/echo?x=%2F1&y", content=b"\x00picture", headers={"content-type": "image/png"})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"\x00picture", "image/png")
    seen = scene.upstream.seen[0]
    wanted = {"method": "POST", "path": "/v1/echo", "query": "x=%2F1&y", "body": b"\x00picture"}
    assert {name: seen[name] for name in wanted} == wanted
    large = random.Random(0).randbytes(9 * 2**20 + 17)
    assert (await scene.client.post("/v1/echo", content=large)).content == large
    assert scene.upstream.seen[1]["headers"]["content-length"] == str(len(large))
    scene.upstream.status = 422  # status and errors of a replica pass unchanged
    answer = await scene.client.post("/v1/echo", content=b"{}", headers={"content-type": "application/problem+json"})
    assert (answer.status_code, answer.content) == (422, b"{}")


async def test_hop_by_hop_and_credential_headers_stay_behind(served):
    scene = await served()
    sent = {
        "Connection": "x-only-here", "X-Only-Here": "1", "Authorization": "Bearer secret", "X-Api-Key": "secret",
        "X-Fovea-Tenant": "somebody else", "TE": "trailers", "Accept": "image/png",
        "Traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "X-Request-Id": "mine-1",
    }  # fmt: skip
    answer = await scene.client.post("/v1/echo", content=b"x", headers=sent)
    got = scene.upstream.seen[0]["headers"]
    assert not {"x-only-here", "authorization", "x-api-key", "te"} & got.keys()
    assert (got["x-fovea-tenant"], got["accept"]) == ("local", "image/png")
    assert got["x-request-id"] == answer.headers["x-request-id"] == "mine-1"
    assert got["traceparent"].split("-")[1] == "a" * 32
    assert got["traceparent"].split("-")[2] != "b" * 16
    assert 119_000 < int(got["x-fovea-deadline-ms"]) <= 120_000
    assert (answer.headers["x-toy"], answer.headers["x-content-type-options"]) == ("yes", "nosniff")
    assert len(answer.headers.get_list("x-content-type-options")) == 1


async def test_events_arrive_while_they_are_made(served):
    scene = await served(fields={"chunks": 3, "gap_s": 0.15})
    loop = asyncio.get_running_loop()
    async with scene.client.stream("POST", "/v1/stream") as answer:
        times = [loop.time() async for _ in answer.aiter_bytes()]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(times) == 3
    assert times[-1] - times[0] > 0.25


@pytest.mark.parametrize(
    ("settings", "headers", "gap_s", "told"),
    [
        ({"request_timeout_s": 0.2}, {}, 0.1, None),
        ({"request_timeout_s": 0.2}, {}, 2.0, "FOVEA_REQUEST_TIMEOUT_S"),
        ({"stream_timeout_s": 0.3}, {}, 0.1, "FOVEA_STREAM_TIMEOUT_S"),
        ({}, {"x-fovea-deadline-ms": "300"}, 0.1, "the caller's own deadline"),
    ],
)
async def test_a_live_stream_is_not_cut(served, monkeypatch, settings, headers, gap_s, told):
    for module in ("http.request_context", "proxy.proxy"):
        monkeypatch.setattr(f"services.gateway.{module}.DEADLINE_GRACE_S", 0.1)
    scene = await served(fields={"chunks": 10, "gap_s": gap_s}, **settings)
    answer = await scene.client.post("/v1/stream", headers=headers)
    *pieces, last = answer.text.strip().split("\n\n")
    assert answer.status_code == 200
    if told is None:
        assert (len(pieces), last) == (9, "data: 9")
    else:
        assert told in json.loads(last.removeprefix("data: "))["error"]["detail"]


@pytest.mark.parametrize(("headers", "longest"), [({}, 0), ({"x-fovea-deadline-ms": "500000"}, 500_000)])
async def test_a_replica_knows_how_long_a_stream_may_last(served, headers, longest):
    scene = await served()
    await scene.client.post("/v1/echo", content=b"x", headers=headers)
    got = scene.upstream.seen[0]["headers"]
    assert int(got["x-fovea-deadline-ms"]) <= 120_000
    assert longest - 1_000 < int(got["x-fovea-stream-ms"]) <= longest


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/slow"])
async def test_a_caller_that_leaves_in_a_stream_or_before_the_answer_stops_the_replica(served, path):
    scene = await served(fields={"chunks": 1000, "gap_s": 0.02})
    with contextlib.suppress(httpx2.ReadTimeout):
        async with scene.client.stream("POST", path, content=b"x", timeout=0.3) as answer:
            await anext(answer.aiter_bytes())
            assert path == "/v1/stream"
    await asyncio.wait_for(scene.upstream.gone.wait(), 3)
    await asyncio.sleep(0.05)
    assert scene.known.in_flight == 0


async def test_a_deadline_of_the_caller_is_passed_on_and_kept(served):
    scene = await served()
    await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": "700"})
    assert 500 < int(scene.upstream.seen[0]["headers"]["x-fovea-deadline-ms"]) <= 700
    await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": "999999999"})
    assert int(scene.upstream.seen[1]["headers"]["x-fovea-deadline-ms"]) <= 120_000
    late = await scene.client.post("/v1/slow", headers={"x-fovea-deadline-ms": "50"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    await asyncio.wait_for(scene.upstream.gone.wait(), 3)


async def test_a_deadline_that_is_no_number_is_refused(served):
    scene = await served()
    for text in ("0", "-5", "soon", "1e3", "9" * 40):
        answer = await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": text})
        assert (answer.status_code, answer.json()["field"]) == (422, "x-fovea-deadline-ms"), text


async def test_loading_reaches_every_replica(gateway, toy):
    first, second = await toy(name="a"), await toy(name="b")
    scene = await gateway()
    scene.announce(first.url, name="a")
    scene.announce(second.url, name="b")
    answer = await scene.client.post("/v2/repository/models/pranet/load", content=b"{}")
    assert answer.status_code == 200
    assert len(first.seen) == len(second.seen) == 1


async def test_requests_are_counted_under_their_route_and_head_is_answered_as_get(served):
    scene = await served()
    await scene.client.post("/v1/echo")
    await scene.client.post("/v2/models/pranet/infer")
    await scene.client.get("/nobody/knows/this")
    scene.announce(scene.upstream.url, service="llm", routes=("/v1/lora-adapters",), models=("smollm",))
    await scene.client.get("/v1/models/nobody-made-this")
    text = (await scene.client.get("/metrics")).text
    assert 'fovea_requests_total{model="",route="/v1/echo",service="gateway",status="200"}' in text
    assert 'route="/v2/models/{name}/infer",service="gateway"' in text
    assert "nobody" not in text
    for path in ("/livez", "/v1/models", "/v1/echo", "/openapi.json"):
        answer = await scene.client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert (await scene.client.head("/nowhere")).status_code == 404


async def test_what_is_read_here_must_not_be_compressed(gateway):
    scene = await gateway()
    answer = await scene.client.post("/v1/admin/keys", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")


TRACE, CALLER = "a" * 32, "b" * 16


async def test_key_model_turn_and_replica_are_spans_of_one_request(gateway, toy, ring, recorded_spans):  # noqa: F811
    _, secret = ring.add("alice", ("infer",))
    one, two = await toy(), await toy()
    scene = await gateway(auth="keys")
    scene.announce(one.url, service="one", name="r1", models=("pranet",), routes=("/v1/echo",))
    scene.announce(two.url, service="two", name="r2", models=("yolo",), routes=("/v1/echo",))
    headers = {"authorization": f"Bearer {secret}", "traceparent": f"00-{TRACE}-{CALLER}-01"}
    answer = await scene.client.post("/v1/echo", json={"model": "yolo"}, headers=headers)
    assert answer.status_code == 200
    server = next(s for s in recorded_spans.named("POST /v1/echo") if s.kind.name == "SERVER")
    sent = next(s for s in recorded_spans.named("POST /v1/echo") if s.kind.name == "CLIENT")
    assert f"{server.parent.span_id:016x}" == CALLER
    for name in ("authenticate", "route", "queue"):
        assert is_child(recorded_spans.one(name), server)
    assert is_child(sent, server)
    assert server.attributes["fovea.tenant"] == "alice"
    assert (sent.attributes["fovea.service"], sent.attributes["fovea.replica"]) == ("two", "r2")
    assert recorded_spans.one("route").attributes["fovea.service"] == "two"
    assert two.seen[0]["headers"]["traceparent"] == f"00-{TRACE}-{sent.context.span_id:016x}-01"


async def test_each_replica_that_is_tried_has_a_span(gateway, toy, recorded_spans):  # noqa: F811
    scene = await gateway()
    busy, ready = await toy(status=503, name="busy"), await toy()
    scene.announce(busy.url, name="r1")
    scene.announce(ready.url, name="r2")
    tries = []
    while len(tries) < 64 and not any("http.request.resend_count" in s.attributes for s in tries):  # drawn by chance
        assert (await scene.client.post("/v1/echo", content=b"x")).status_code == 200
        tries = [s for s in recorded_spans.all() if s.kind.name == "CLIENT"]
    again = [s for s in tries if "http.request.resend_count" in s.attributes]
    assert again
    assert {s.attributes["fovea.replica"] for s in again} == {"r2"}
    lost = [s for s in tries if s.attributes["fovea.replica"] == "r1"]
    assert all(s.attributes["error.type"] == "UpstreamLost" for s in lost)


async def test_a_caller_that_does_not_want_a_trace_gets_none(served, recorded_spans):  # noqa: F811
    scene = await served()
    await scene.client.post("/v1/echo", content=b"x", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert recorded_spans.all() == ()
    sent = scene.upstream.seen[0]["headers"]["traceparent"].split("-")
    assert (sent[1], sent[3]) == (TRACE, "00")
