"""Spans of the gateway: key, model, turn and replica of a request, and what a caller's `traceparent` becomes."""

from shared.tests.recorded_spans import is_child, recorded_spans  # noqa: F401  # a fixture

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
