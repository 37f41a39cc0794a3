"""Errors have the form of their route; parts, strangers and URLs are refused early."""

import asyncio
import contextlib
import gzip
import ipaddress
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import grpc
import httpx2
import pytest
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fovea import errors
from fovea.api.replica import SECRET_HEADER
from fovea.api.text import ChatRequest
from fovea.errors import InvalidOption, TooLarge
from shared.asgi.body import SlowBody
from shared.asgi.json_bounds import MAX_PARTS, PartsCounter
from shared.rpc import open_inference_pb2 as pb
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.errors import NotAcceptable, to_safe_error
from shared.serving.http.negotiation import choose
from shared.serving.http.url_images import Fetcher, is_public
from shared.serving.oip.grpc_health_reflection import SERVICE
from shared.serving.tests.toys import PNG
from shared.settings import Settings
from shared.validation_errors import MAX_ERRORS, list_errors
from tests.harness.scripted import scripted


def scope(path="/v1/segment", **more):
    return {"path": path, **more}


def forms(*places):
    return RequestValidationError([{"loc": ("body", "a", *place), "msg": place[0], "type": "x"} for place in places])


def invalid(**first):
    return RequestValidationError([{"loc": ("body", "a", 0), "msg": "is wrong", "type": "x", **first}])


@pytest.mark.parametrize(("raised", "kind", "field", "told"), [
    (forms(("constrained-str",), ("list[float]", 3)), errors.InvalidOption, "a.3", "a.3: list[float]."),
    (forms(("literal['x','y']",), ("list[int]",)), errors.InvalidOption, "a", "a: literal['x','y']."),
    (forms(("str",), ("list[Part]", 0, "type"), ("list[Part]",)), errors.InvalidOption, "a.0.type", "list[Part]."),
    (forms(("b",), ("list[Part]", 0, "type")), errors.InvalidOption, "a.b", "a.b: b."),
    (invalid(), errors.InvalidOption, "a.0", "is wrong"),
    (invalid(loc=("query", "size")), errors.InvalidOption, "size", "is wrong"),
    (invalid(loc=("body",)), errors.InvalidOption, "body", "is wrong"),
    (invalid(type="json_invalid", ctx={"error": "Expecting value"}), errors.Malformed, None, "Expecting value"),
    (invalid(type="json_invalid"), errors.Malformed, None, ""),
    (HTTPException(404), errors.NotFound, None, "There is no such route here."),
    (HTTPException(404, "No such document."), errors.NotFound, None, "No such document."),
    (HTTPException(405, headers={"Allow": "GET"}), errors.MethodNotAllowed, None, "It takes GET."),
    (HTTPException(406, "x"), NotAcceptable, None, ""), (HTTPException(408, "x"), SlowBody, None, ""),
    (HTTPException(413, "x"), errors.TooLarge, None, ""), (HTTPException(500, "x"), errors.Fault, None, ""),
    (HTTPException(401, "x"), errors.Unauthenticated, None, ""), (ClientDisconnect(), errors.Cancelled, None, ""),
    (ZeroDivisionError("/etc/secret"), errors.Fault, None, ""),
    (errors.Conflict("as it is"), errors.Conflict, None, "as it is"),
])  # fmt: skip
def test_anything_raised_becomes_an_error_of_ours_and_words_of_routers_are_kept(raised, kind, field, told):
    error = translate(raised)
    assert (type(error), error.field, told in f"{error.detail} {error.hint}") == (kind, field, True)
    assert "secret" not in error.detail
    fault = to_safe_error(RuntimeError("/etc/secret"), "The model pranet")
    assert (fault.detail, "log" in fault.hint) == ("The model pranet failed on this request.", True)


@pytest.mark.parametrize(("where", "form"), [
    (scope("/v1/segment"), "problem"), (scope("/v2/models/x/infer"), "oip"),
    (scope("/v1/chat/completions"), "openai"), (scope("/v1/completions"), "openai"),
    (scope("/v1/models/org/none"), "openai"), (scope("/v1/responses/x/cancel"), "openai"),
    (scope("/anything", route=SimpleNamespace(openapi_extra={"x-error-form": "openai"})), "openai"),
    (scope("/anything", route=object()), "problem"),
])  # fmt: skip
def test_form_follows_the_route_and_the_time_to_come_back_is_told_in_whole_seconds(where, form):
    answer = render(where, errors.InvalidOption("threshold is 7.", field="threshold", hint="Use 0 to 1."))
    body = json.loads(answer.body)
    if form == "problem":
        assert (answer.status_code, answer.media_type) == (422, "application/problem+json")
        assert (body["field"], body["hint"], body["code"]) == ("threshold", "Use 0 to 1.", "invalid_option")
    elif form == "openai":
        assert (answer.status_code, body["error"]["param"]) == (400, "threshold")
    else:
        assert (answer.status_code, body) == (400, {"error": "threshold is 7. Use 0 to 1."})

    for seconds, header in ((None, None), (0.1, "1"), (2.0, "2"), (2.1, "3")):
        assert render(scope(), errors.QueueFull("x", retry_after=seconds)).headers.get("retry-after") == header


OFFERED = ["application/json", "image/png", "image/webp"]


@pytest.mark.parametrize(("accept", "chosen"), [
    (None, "application/json"), ("", "application/json"), ("*/*", "application/json"), ("image/png", "image/png"),
    ("IMAGE/PNG", "image/png"), ("image/*", "image/png"), ("image/webp, image/png;q=0.5", "image/webp"),
    ("image/png;q=0.2, application/json;q=0.1", "image/png"), ("image/png;level=1;q=0.7", "image/png"),
    ("image/*;q=0.9, image/png;q=0.1, */*;q=0.2", "image/webp"), ("application/json;q=0, */*", "image/png"),
    ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
])  # fmt: skip
def test_best_liked_offer_is_chosen_and_nothing_that_fits_said_with_what_is_offered(accept, chosen):
    assert choose(accept, OFFERED) == chosen
    for none in ("text/html", "image/png;q=0", "image/png;q=x", "video/*", "*/*;q=0"):
        with pytest.raises(NotAcceptable) as refused:
            choose(none, OFFERED)
        assert (refused.value.status, "image/webp" in refused.value.hint) == (406, True)


@given(accept=st.text(alphabet="abcimage/*pngjson,;q=.0159 ", max_size=60), order=st.permutations(OFFERED))
def test_any_header_chooses_an_offer_or_is_refused_and_among_equals_the_first_offered_wins(accept, order):
    try:
        assert choose(accept, OFFERED) in OFFERED
    except NotAcceptable:
        assert accept.strip()
    assert choose(", ".join(reversed(order)), order) == order[0]


JSON = "application/json"

values = st.recursive(
    st.none() | st.integers() | st.text('"\\,[{ab', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\,[{ab', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def count(value: Any) -> int:
    """Commas and opening brackets of a value's JSON outside of texts."""
    if isinstance(value, list):
        return 1 + max(len(value) - 1, 0) + sum(map(count, value))
    return 1 + max(len(value) - 1, 0) + sum(map(count, value.values())) if isinstance(value, dict) else 0


@given(value=values, cuts=st.lists(st.integers(0, 200), max_size=6), is_ascii=st.booleans())
def test_parts_are_counted_outside_of_texts_however_a_body_is_cut(value, cuts, is_ascii):
    data, counter = json.dumps(value, ensure_ascii=is_ascii).encode(), PartsCounter("/v1/x", JSON)
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        counter.feed(data[begin:end])
    assert counter.count == count(value)


def test_a_body_of_many_parts_is_refused_in_little_time_and_what_is_no_json_or_one_long_text_not_counted():
    lists, depth = b'{"messages":[' + b"[]," * 7_000_000 + b"[]]}", b'{"a":' + b"{" * 300_000
    texts, escapes = b"[" + b'"",' * 300_000 + b"1]", b'{"' + b'\\"' * 10_000_000 + b'":1' + b",1" * 300_000 + b"}"
    for body in (lists, depth, texts, escapes):
        begun = time.process_time()
        with pytest.raises(TooLarge, match="250,000 parts"):
            PartsCounter("/v1/x", "").feed(body)
        assert time.process_time() - begun < 1.0
    for path, content_type, body in (
        ("/v1/x", JSON, b'{"text":"' + b"[,{" * 300_000 + b'"}'), ("/v1/x", "image/png", b"{" + b"," * 300_000),
        ("/v1/x", "", b"\x89PNG" + b"," * 300_000), ("/v2/models/x/infer", JSON, b"[" + b"1," * 300_000),
        ("/v1/x", JSON, b"[" + b"1," * (MAX_PARTS - 1) + b"1]"),
    ):  # fmt: skip
        PartsCounter(path, content_type).feed(body)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    numbers: list[int]


routes = APIRouter()


@routes.post("/v1/strict")
async def take(body: Strict) -> int:
    return len(body.numbers)


@routes.post("/v1/chatting")
async def chat(body: ChatRequest) -> int:
    return len(body.messages)


@pytest.fixture
async def client(start_client, tmp_path):
    return await start_client({}, routers=[routes], data_dir=tmp_path)


async def test_a_flood_of_parts_is_413_and_the_first_wrong_message_ends_validation(client):
    body = b'{"numbers":[' + b"[]," * MAX_PARTS + b"1]}"
    for kind in (JSON, "application/x+json; charset=utf-8"):
        answer = await client.post("/v1/strict", content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = await client.post("/v1/chatting", json={"model": "x", "messages": [[]] * 9_000})
    assert (answer.status_code, answer.json()["field"]) == (422, "messages.0")
    many = await client.post("/v1/chatting", json={"messages": [{"role": "user", "content": ""}] * 10_001})
    assert "10000" in many.json()["detail"]


async def test_many_errors_are_one_sentence_and_few_are_listed(client):
    for body in ({"numbers": ["x"] * 100_000}, {f"k{n}": 1 for n in range(100_000)}):
        begun = time.process_time()
        answer = await client.post("/v1/strict", json=body)
        assert (answer.status_code, "100,00" in answer.json()["detail"]) == (422, True)
        assert time.process_time() - begun < 1.5
    few = await client.post("/v1/strict", json={"numbers": ["x", "y"]})
    assert few.json()["detail"].startswith("numbers.0: Input should be a valid integer")
    for wrong in (MAX_ERRORS, MAX_ERRORS + 1):
        with pytest.raises(ValidationError) as failed:
            Strict.model_validate({"numbers": ["x"] * wrong})
        assert len(list_errors(failed.value)) == (wrong if wrong == MAX_ERRORS else 1)


async def test_who_does_not_know_the_secret_can_be_no_tenant_nor_call_over_grpc(start_replica):
    made = await start_replica(must_load=False, replica_secret="new,old")
    async with httpx2.AsyncClient(base_url=made.http) as client:
        for headers in ({}, {SECRET_HEADER: "wrong"}, {SECRET_HEADER: "new,old"}, {SECRET_HEADER: ""}):
            answer = await client.get("/v1/models", headers={"x-fovea-tenant": "alice", **headers})
            assert (answer.status_code, "gateway only" in answer.json()["error"]["message"]) == (401, True)
        for secret in ("new", "old"):
            assert (await client.get("/v1/models", headers={SECRET_HEADER: secret})).status_code == 200
        assert (await client.get("/livez")).status_code == 200
    async with grpc.aio.insecure_channel(made.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ServerLive")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"")
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert pb.ServerLiveResponse.FromString(await call(b"", metadata=((SECRET_HEADER, "new"),))).live
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    assert Settings(replica_secret="new, old").replica_credentials == {SECRET_HEADER: "new"}
    assert Settings().replica_credentials == {}


async def test_without_a_secret_the_name_must_be_ours(start_replica):
    made = await start_replica(must_load=False)
    async with httpx2.AsyncClient(base_url=made.http) as client:
        for host, status in (("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200), (None, 200)):
            answer = await client.get("/v1/models", headers={"host": host} if host else {})
            assert answer.status_code == status


def fetcher(limit=1000, seconds=10.0, allowed=lambda _: True):
    return Fetcher(limit, seconds, allowed)


@contextlib.asynccontextmanager
async def server(answers):
    """A small web server; `answers` maps a path to raw bytes of a whole HTTP answer, or to None for silence."""
    seen, done = [], asyncio.Event()

    async def serve(reader, writer):
        done.clear()
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        answer = answers[head.split()[1]]
        with contextlib.suppress(ConnectionError):
            if answer is None:
                await reader.read()  # until the caller goes away
            else:
                writer.write(answer)
                await writer.drain()
        done.set()

    async with scripted(serve) as url:
        yield url, seen
        await done.wait()


def ok(body, length=None):
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def squeezed(body):
    """An answer whose body is compressed twice: 64 kB on the wire could be 64 GB here."""
    body = gzip.compress(gzip.compress(body))
    return ok(body).replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip, gzip\r\n\r\n", 1)


def moved(to):
    return f"HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n".encode()


PUBLIC = ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.9", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:0a00:0001::", *PUBLIC,
])  # fmt: skip
def test_only_public_addresses_are_public_in_any_dress(address):
    assert is_public(ipaddress.ip_address(address)) is (address in PUBLIC)


OF_OTHER_KINDS = ("ftp://example.org/a", "http://user:pass@8.8.8.8/a", "http:///a", "https://")


@pytest.mark.parametrize("url", [
    "http://127.0.0.1/a", "http://localhost/a", "http://2130706433/a", "http://0x7f.1/a", "http://[::1]/a",
    "http://[::ffff:127.0.0.1]/a", "https://169.254.169.254/latest/meta-data", *OF_OTHER_KINDS,
])  # fmt: skip
async def test_private_host_in_any_spelling_and_url_of_another_kind_is_refused_without_its_address(url):
    with pytest.raises(InvalidOption, match="http or https" if url in OF_OTHER_KINDS else "not public|no host"):
        await Fetcher(1000).fetch(url)


async def test_file_is_fetched_under_its_own_host_name_and_not_inflated():
    async with server({"/a?b=c": ok(PNG), "/packed": squeezed(bytes(5000))}) as (url, seen):
        assert await fetcher().fetch(f"{url}/a?b=c") == PNG
        assert len(await fetcher().fetch(f"{url}/packed")) < 1000
    for words in (f"host: {url.removeprefix('http://')}", "accept-encoding: identity"):
        assert all(words in head.lower() for head in seen)


async def test_redirects_are_followed_and_each_is_checked():
    asked = []

    def only_first(address):
        asked.append(address)
        return len(asked) == 1

    async with server({"/a": moved("/b"), "/b": ok(PNG), "/loop": moved("/loop")}) as (url, seen):
        assert await fetcher().fetch(f"{url}/a") == PNG
        with pytest.raises(InvalidOption, match="redirects more than 4"):
            await fetcher().fetch(f"{url}/loop")
        with pytest.raises(InvalidOption, match="not public"):
            await fetcher(allowed=only_first).fetch(f"{url}/a")
    assert sum("GET /b" in head for head in seen) == 1


GONE = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


async def test_file_over_the_limit_is_refused_while_it_arrives_and_what_is_wrong_with_the_other_side_said():
    for answer in (ok(b"x" * 1001), ok(b"", length=10**9), b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000):
        async with server({"/a": answer}) as (url, _):
            with pytest.raises(TooLarge, match="more than 1,000 bytes"):
                await fetcher().fetch(f"{url}/a")
    async with server({"/gone": GONE, "/slow": None, "/odd": b"nonsense\r\n\r\n"}) as (url, _):
        wrong = (("gone", 10, "answered 404"), ("slow", 0.2, r"within 0\.2 s"), ("odd", 10, "could not be read"))
        for path, seconds, told in wrong:
            with pytest.raises(InvalidOption, match=told):
                await fetcher(seconds=seconds).fetch(f"{url}/{path}")


async def test_routes_take_public_urls_in_json_and_query_and_one_bad_url_of_a_list_fails_alone(
    monkeypatch, start_client
):
    fetching = await start_client(allow_image_urls=True, max_body_bytes=100_000)
    monkeypatch.setattr("shared.serving.http.task_routes.Fetcher", fetcher)
    async with server({"/a": ok(PNG), "/b": GONE}) as (url, _):
        in_json = await fetching.post("/v1/segment", json={"image": f"{url}/a"})
        in_query = await fetching.post(f"/v1/segment?image={quote(url + '/a', safe='')}")
        answer = await fetching.post("/v1/segment", json={"images": [f"{url}/a", f"{url}/b"]})
    told = [(one.status_code, one.json()["bytes"]) for one in (in_json, in_query)]
    first, second = answer.json()["results"]
    assert [*told, first["bytes"]] == [(200, len(PNG)), (200, len(PNG)), len(PNG)]
    assert (second["problem"]["status"], second["problem"]["field"]) == (422, "image")
    monkeypatch.undo()
    answer = await fetching.post("/v1/segment", json={"image": "http://127.0.0.1:1/a"})
    assert (answer.status_code, answer.json()["field"], "not public" in answer.json()["detail"]) == (422, "image", True)
