"""The front, message by message: what it passes on, what it keeps back, and what it makes of an app that misbehaves."""

import asyncio
import gzip
import zlib
from types import SimpleNamespace

import pytest

from fovea.api.replica import ENDLESS
from fovea.errors import InvalidOption
from shared import telemetry
from shared.registry import CallContext
from shared.serving.http.middleware import ServiceMiddleware
from shared.settings import Settings

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
async def test_compressed_bodies_are_inflated_within_the_limit(coding):
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
    for sent, body, status in ((coding, b"no", 400), ("br", b"x", 415)):
        caller = Caller(request(body))
        await through(reads_all, caller, scope(sent={"content-encoding": sent}))
        assert caller.answers[0]["status"] == status


async def test_a_compressed_body_that_may_never_end_is_inflated_beyond_the_limit():
    caller = Caller(request(gzip.compress(b"film" * 500)))
    where = scope(sent={"content-encoding": "gzip"}, route=SimpleNamespace(path="/x", openapi_extra=ENDLESS))
    await through(reads_all, caller, where, max_body_bytes=1024)
    assert caller.answers[-1]["body"] == b"film" * 500


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


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_request_passes_untouched(kind):
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send))

    where, caller = {"type": kind}, Caller()
    front = ServiceMiddleware(app, "test", Settings())
    receive, send = caller.receive, caller.send
    await front(where, receive, send)
    assert seen == [(where, receive, send)]
    assert where == {"type": kind}


async def test_answer_keeps_its_headers_and_gains_the_request_id():
    async def app(scope, receive, send):
        await send(dict(START))
        await send(BODY)

    caller = Caller(request())
    await through(app, caller, scope(sent={"x-request-id": "r-1"}))
    start, body = caller.answers
    assert start["headers"] == [(b"x-own", b"1"), (b"x-request-id", b"r-1")]
    assert body == BODY


async def test_app_sees_the_context_and_a_run_with_the_deadline():
    seen = {}

    async def app(scope, receive, send):
        seen.update(context=telemetry.context(), run=scope["fovea.run"])
        await send(dict(START))

    await through(app, Caller(request()), scope(sent={"x-request-id": "r-1"}), request_timeout_s=60)
    assert (seen["context"].request_id, seen["context"].service) == ("r-1", "test")
    assert isinstance(seen["run"], CallContext)
    assert seen["run"].deadline is not None
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
    assert heard == [{"type": "http.disconnect"}] * 2
    assert where["fovea.run"].cancelled


async def test_caller_that_leaves_in_the_middle_of_its_body_cancels_the_run():
    async def app(scope, receive, send):
        await receive()
        await receive()

    caller = Caller(request(b"a", more=True))
    caller.gone.set()
    where = await through(app, caller)
    assert where["fovea.run"].cancelled
    assert caller.answers == []


async def test_body_of_exactly_the_limit_passes_and_one_byte_more_does_not():
    whole = Caller(request(b"a" * 600, more=True), request(b"b" * 424))
    await through(reads_all, whole, max_body_bytes=1024)
    assert len(whole.answers[1]["body"]) == 1024
    over = Caller(request(b"a" * 600, more=True), request(b"b" * 425))
    await through(reads_all, over, max_body_bytes=1024)
    assert over.answers[0]["status"] == 413
    assert (b"connection", b"close") in over.answers[0]["headers"]
    stated = Caller()
    await through(pytest.fail, stated, scope(sent={"content-length": "1025"}), max_body_bytes=1024)
    assert stated.answers[0]["status"] == 413


async def test_app_s_own_words_for_what_we_refused_are_replaced_by_ours():
    async def app(scope, receive, send):
        try:
            await reads_all(scope, receive, send)
        except Exception:  # noqa: BLE001
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"There was an error parsing the body"})

    caller = Caller(request(b"a" * 2000))
    await through(app, caller, max_body_bytes=1024)
    assert [message["type"] for message in caller.answers] == ["http.response.start", "http.response.body"]
    assert caller.answers[0]["status"] == 413
    assert b"limit is 1,024" in caller.answers[1]["body"]


async def test_error_after_the_answer_began_breaks_it_off():
    async def app(scope, receive, send):
        await send(dict(START))
        raise ZeroDivisionError

    caller = Caller(request())
    with pytest.raises(ZeroDivisionError):
        await through(app, caller)
    assert [message["type"] for message in caller.answers] == ["http.response.start"]


async def test_refused_request_whose_body_was_read_keeps_the_connection():
    async def app(scope, receive, send):
        await receive()
        raise InvalidOption("no", field="a")

    caller = Caller(request(b"{}"))
    await through(app, caller)
    assert caller.answers[0]["status"] == 422
    assert (b"connection", b"close") not in caller.answers[0]["headers"]
