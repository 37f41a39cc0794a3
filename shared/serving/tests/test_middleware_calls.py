"""The front around every request, message by message and on real sockets: ids, limits, slow callers, metrics, stops."""

import asyncio
import gzip
import json
import zlib
from types import SimpleNamespace
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from fovea.api.replica import ENDLESS
from fovea.errors import InvalidOption
from shared import telemetry
from shared.registry import CallContext
from shared.serving.http.middleware import ServiceMiddleware
from shared.serving.tests.toys import PNG, TOYS
from shared.settings import Settings
from shared.sparsity import SparsityClaim
from tests.harness.waiting import until

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]}
BODY = {"type": "http.response.body", "body": b"ok"}


def request(body=b"", more=False):
    return {"type": "http.request", "body": body, "more_body": more}


def scope(**more):
    headers = [(name.encode(), value.encode()) for name, value in more.pop("sent", {}).items()]
    return {"type": "http", "path": "/x", "method": "POST", "headers": headers, **more}


class Caller:
    """Sends prepared messages, then waits; keeps what comes back."""

    def __init__(self, *messages):
        self.messages = list(messages)
        self.answers = []
        self.gone = asyncio.Event()

    async def receive(self):
        """The next message; after the last, the caller's going away, when it goes."""
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.answers.append(message)


async def through(app, caller, where=None, **settings):
    where = scope() if where is None else where
    await ServiceMiddleware(app, "test", Settings(**settings))(where, caller.receive, caller.send)
    return where


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_bodies_are_inflated_within_the_limit_or_beyond_it_where_they_may_never_end(coding):
    def packed(data):
        return gzip.compress(data) if coding == "gzip" else zlib.compress(data)

    async def echo(scope, receive, send):
        assert dict(scope["headers"]).get(b"content-encoding") is None
        await reads_all(scope, receive, send)

    data = packed(b"hello" * 100)
    caller = Caller(request(data[:5], more=True), request(data[5:]))
    await through(echo, caller, scope(sent={"content-encoding": coding, "content-length": str(len(data))}))
    assert caller.answers[-1]["body"] == b"hello" * 100
    bomb = Caller(request(packed(bytes(50_000_000))))
    await through(echo, bomb, scope(sent={"content-encoding": coding}), max_body_bytes=100_000)
    assert bomb.answers[0]["status"] == 413
    film = Caller(request(packed(b"film" * 500)))
    where = scope(sent={"content-encoding": coding}, route=SimpleNamespace(path="/x", openapi_extra=ENDLESS))
    await through(reads_all, film, where, max_body_bytes=1024)
    assert film.answers[-1]["body"] == b"film" * 500
    whole = packed(b"x" * 1000)
    for sent, body, status in (
        *((coding, broken, 400) for broken in (b"no", whole[:-9], whole + b"more", whole * 2)),
        ("deflate", gzip.compress(b"{}"), 400), (f"{coding}, {coding}", packed(whole), 415), ("br", b"x", 415),
    ):  # fmt: skip
        caller = Caller(request(body))
        await through(reads_all, caller, scope(sent={"content-encoding": sent}))
        assert caller.answers[0]["status"] == status, (sent, body[:20])


async def test_calls_of_a_tenant_use_its_own_caches():
    salts = []

    async def app(scope, receive, send):
        salts.append(scope["fovea.run"].cache_salt)
        await reads_all(scope, receive, send)

    for sent in ({"x-fovea-tenant": "alice"}, {}):
        await through(app, Caller(request()), scope(sent=sent))
    await through(app, Caller(request()), scope(sent={"x-fovea-tenant": "alice"}), prefix_cache_shared=True)
    assert salts == ["alice", "local", ""]


async def reads_all(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({**START, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_app_sees_the_context_and_a_run_with_the_deadline_and_its_answer_gains_the_request_id():
    seen = {}

    async def app(scope, receive, send):
        seen.update(context=telemetry.context(), run=scope["fovea.run"])
        await send(dict(START))
        await send(BODY)

    caller = Caller(request())
    await through(app, caller, scope(sent={"x-request-id": "r-1"}), request_timeout_s=60)
    start, body = caller.answers
    assert (start["headers"], body) == ([(b"x-own", b"1"), (b"x-request-id", b"r-1")], BODY)
    assert (seen["context"].request_id, seen["context"].service) == ("r-1", "test")
    assert (isinstance(seen["run"], CallContext), seen["run"].deadline is None) == (True, False)
    assert telemetry.context().request_id == ""
    await through(app, Caller(request()), scope(sent={"x-fovea-job": "j1 2", "x-fovea-deadline-ms": "5"}))
    assert (seen["run"].job, seen["run"].deadline) == ("j1", None), "a job has all the time it needs"


async def test_app_that_listens_for_the_caller_hears_it_go_once_for_all():
    heard = []

    async def app(scope, receive, send):
        await receive()
        heard.extend(await asyncio.gather(receive(), receive()))
        await send(dict(START))

    caller = Caller(request())
    asyncio.get_running_loop().call_later(0.02, caller.gone.set)
    where = await through(app, caller)
    assert (heard, where["fovea.run"].cancelled) == ([{"type": "http.disconnect"}] * 2, True)

    async def reads_on(scope, receive, send):
        await receive()
        await receive()

    caller = Caller(request(b"a", more=True))  # it leaves in the middle of its body
    caller.gone.set()
    where = await through(reads_on, caller)
    assert (where["fovea.run"].cancelled, caller.answers) == (True, [])


async def test_body_of_exactly_the_limit_passes_and_one_byte_more_does_not():
    for pieces, sent, status in (
        ((b"a" * 600, b"b" * 424), {}, 200), ((b"a" * 600, b"b" * 425), {}, 413), ((), {"content-length": "1025"}, 413)
    ):  # fmt: skip
        caller = Caller(*(request(piece, more=piece[:1] == b"a") for piece in pieces))
        await through(reads_all if pieces else pytest.fail, caller, scope(sent=sent), max_body_bytes=1024)
        assert caller.answers[0]["status"] == status
        assert ((b"connection", b"close") in caller.answers[0]["headers"]) is (status == 413)
        assert status == 413 or len(caller.answers[1]["body"]) == 1024


async def test_refused_request_whose_body_was_read_keeps_the_connection_and_an_error_later_breaks_the_answer_off():
    async def app(scope, receive, send):
        if (await receive())["body"]:
            raise InvalidOption("no", field="a")
        await send(dict(START))
        raise ZeroDivisionError

    caller = Caller(request(b"{}"))
    await through(app, caller)
    assert (caller.answers[0]["status"], (b"connection", b"close") in caller.answers[0]["headers"]) == (422, False)
    caller = Caller(request())
    with pytest.raises(ZeroDivisionError):
        await through(app, caller)
    assert [message["type"] for message in caller.answers] == ["http.response.start"]


LIMIT = 50_000
BROKEN_JSON = {"content": "{", "headers": {"content-type": "application/json"}}


class Body(BaseModel):
    number: int


def extra_routes() -> APIRouter:
    router = APIRouter()

    @router.post("/extra")
    async def extra(body: Body, size: Annotated[int, Query(le=10)] = 1) -> dict[str, int]:
        return {"sum": body.number + size}

    @router.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")

    @router.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("a secret path /etc/secret")

    return router


@pytest.fixture
async def replica(start_replica):
    limits = {"max_body_bytes": LIMIT, "body_read_timeout_s": 0.3, "shutdown_grace_s": 2}
    return await start_replica(routers=[extra_routes()], **limits)


@pytest.fixture
async def client(replica):
    async with httpx2.AsyncClient(base_url=replica.http, timeout=5) as made:
        yield made


async def connect(replica):
    host, port = replica.http.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def raw(replica, *pieces, pause=0.0):
    """Send bytes over a socket of our own; return the answer up to the end of the connection."""
    reader, writer = await connect(replica)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


def head(length, path="/v1/segment", more="", kind="application/json"):
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n{length}\r\n{more}\r\n".encode()


async def test_models_are_listed_by_task_with_cards_examples_and_what_claims_of_sparsity_still_owe(
    client, replica, monkeypatch
):
    listed = (await client.get("/v1/models")).json()
    assert ([entry["id"] for entry in listed["data"]], listed["object"]) == (list(TOYS), "list")
    only = (await client.get("/v1/models", params={"task": "segment"})).json()["data"]
    assert [(entry["id"], entry["object"]) for entry in only] == [("toy/eye", "model")]
    card = (await client.get("/v1/models/toy/eye")).json()
    assert (card["id"], card["licence"], card["limits"]["max_body_bytes"]) == ("toy/eye", "Apache-2.0", LIMIT)
    example = (await client.get("/v1/models/toy/eye/example")).json()
    assert (await client.post("/v1/segment", json=example)).json()["bytes"] == len(PNG)
    plain = await client.get("/v1/models/toy/eye/sparsity")
    assert (plain.status_code, plain.json()["error"]["code"]) == (404, "not_found")
    facts = {"sparsity_global": 0.5, "counted_in": "artefact", "theoretical_flops_ratio": 0.5}
    kind = replica.host.servable_type("toy/eye")
    claiming = kind.card.model_copy(update={"sparsity": SparsityClaim(model="toy/eye", **facts)})
    monkeypatch.setattr(kind, "card", claiming)
    told = (await client.get("/v1/models/toy/eye/sparsity")).json()
    assert told["claim"]["sparsity_global"] == 0.5
    assert [finding["rule"] for finding in told["findings"]] == ["S1", "S2", "S3", "S7"]


async def test_errors_of_any_kind_are_told_ours_keep_their_secret_and_health_says_what_is_missing(client, replica):
    for method, path, how, status, told in (
        ("GET", "/nope", {}, 404, {"code": "not_found"}),
        ("DELETE", "/readyz", {}, 405, {"code": "method_not_allowed", "hint": "It takes GET."}),
        ("DELETE", "/v1/models", {}, 405, {"message": "This route does not take that method. It takes GET."}),
        ("GET", "/v1/models/none", {}, 404, {"code": "not_found"}),
        ("POST", "/extra", {"json": {"number": "x"}}, 422, {"field": "number"}),
        ("POST", "/extra?size=11", {"json": {"number": 1}}, 422, {"field": "size"}),
        ("POST", "/extra", BROKEN_JSON, 400, {"code": "malformed"}),
    ):
        answer, is_openai = await client.request(method, path, **how), path.startswith("/v1/models")
        kind = "application/json" if is_openai else "application/problem+json"
        assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
        assert (answer.json()["error"] if is_openai else answer.json()).items() >= told.items()
        assert (answer.headers.get("allow") == "GET") is (status == 405)
    assert (await client.post("/extra?size=2", json={"number": 1})).json() == {"sum": 3}
    teapot = await client.get("/teapot")
    assert (teapot.status_code, teapot.json()["detail"]) == (400, "short and stout")
    answer = await client.get("/bug")
    assert (answer.status_code, answer.json()["code"], "secret" in answer.text) == (500, "fault", False)
    assert (await client.get("/readyz")).json() == {"status": "ready", "service": "toy", "missing": {}}
    replica.host.slot("toy/eye").state = "loading"
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, {"toy/eye": "loading"})
    assert (await client.get("/livez")).status_code == 200


async def test_refusal_is_ours_where_the_framework_reads_the_body_and_one_that_trickles_is_read(replica):
    chunk = b"%x\r\n%s\r\n" % (20_000, bytes(20_000))
    answer = await raw(replica, head("transfer-encoding: chunked", "/extra"), *[chunk] * 3, pause=0.02)
    assert answer.startswith(b"HTTP/1.1 413")
    assert (await raw(replica, head("content-length: 100", "/extra"), b"{")).startswith(b"HTTP/1.1 408")
    start = head(f"content-length: {len(PNG)}", more="connection: close\r\n", kind="image/png")
    assert (await raw(replica, start, PNG[:30], PNG[30:], pause=0.15)).startswith(b"HTTP/1.1 200")


async def test_caller_that_goes_away_cancels_its_run_and_ends_its_stream(replica, client):
    _, writer = await connect(replica)
    sent = b'{"text": "x", "sleep": 600}'
    writer.write(head(f"content-length: {len(sent)}", "/v1/echo") + sent)
    await writer.drain()
    await until(lambda: replica.host.busy)
    writer.close()
    await until(lambda: not replica.host.busy, 60)
    how = {"json": {"text": "…"}, "headers": {"accept": "application/x-ndjson"}}
    async with client.stream("POST", "/v1/plan", **how) as answer:
        assert json.loads(await anext(answer.aiter_lines()))["text"] == "…"
        assert replica.host.busy == 1
    await until(lambda: replica.host.busy == 0)


async def test_deadline_of_the_caller_is_kept_where_it_is_a_number(client):
    for sent in ("80", "80.5", "soon", "", "nan", "-1e999"):
        how, is_number = {"headers": {"x-fovea-deadline-ms": sent}, "timeout": 60}, sent.startswith("80")
        answer = await client.post("/v1/echo", json={"text": "x", "sleep": 600 if is_number else 0}, **how)
        assert answer.status_code == (504 if is_number else 200), sent


async def test_requests_are_counted_and_stop_finishes_the_one_in_flight_and_accepts_no_more(client, replica):
    await client.post("/v1/echo", json={"text": "x"})
    await client.post("/v1/echo", json={"text": "x", "times": 99})
    text = (await client.get("/metrics")).text
    for sample in (
        'requests_total{model="toy/echo",route="/v1/echo",service="toy",status="200"}',
        'requests_total{model="toy/echo",route="/v1/echo",service="toy",status="422"}',
        'request_seconds_count{route="/v1/echo",service="toy"}', 'in_flight{service="toy"} 1.0',
        'errors_total{code="invalid_option",model="toy/echo",service="toy"}',
    ):  # fmt: skip
        assert f"fovea_{sample}" in text
    answer = asyncio.create_task(client.post("/v1/echo", json={"text": "x", "sleep": 0.4}))
    await until(lambda: replica.host.busy)
    await replica.stop()
    assert (await answer).json()["text"] == "x"
    with pytest.raises(httpx2.ConnectError):
        await client.get("/livez")
    assert not replica.alive
