"""What is raised becomes an error in the form of its route; bodies of many parts and strangers are refused early."""

import itertools
import json
import time
from typing import Any

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
from fovea.api.text import ChatRequest, CompletionRequest
from fovea.errors import TooLarge
from shared.asgi.body import SlowBody
from shared.asgi.json_bounds import MAX_PARTS, PartsCounter
from shared.rpc import open_inference_pb2 as pb
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.errors import NotAcceptable, to_safe_error
from shared.serving.http.negotiation import choose
from shared.serving.oip.grpc_health_reflection import SERVICE
from shared.settings import Settings
from shared.validation_errors import MAX_ERRORS, list_errors


class Route:
    def __init__(self):
        self.openapi_extra = {"x-error-form": "openai"}


def scope(path="/v1/segment", **more):
    return {"path": path, **more}


def forms(*places):
    return RequestValidationError([{"loc": ("body", "a", *place), "msg": place[0], "type": "x"} for place in places])


def test_of_a_value_with_several_forms_the_one_that_fits_furthest_is_told():
    for raised, message, field in (
        (forms(("constrained-str",), ("list[float]", 3)), "list[float]", "a.3"),
        (forms(("literal['x','y']",), ("list[int]",)), "literal['x','y']", "a"),
        (forms(("str",), ("list[Part]", 0, "type"), ("list[Part]",)), "list[Part]", "a.0.type"),
        (forms(("b",), ("list[Part]", 0, "type")), "b", "a.b"),
    ):
        error = translate(raised)
        assert (error.field, error.detail) == (field, f"{field}: {message}.")


def invalid(**first):
    return RequestValidationError([{"loc": ("body", "a", 0), "msg": "is wrong", "type": "x", **first}])


@pytest.mark.parametrize(
    ("raised", "kind", "field"),
    [
        (invalid(), errors.InvalidOption, "a.0"),
        (invalid(loc=("query", "size")), errors.InvalidOption, "size"),
        (invalid(loc=("body",)), errors.InvalidOption, "body"),
        (invalid(type="json_invalid", ctx={"error": "Expecting value"}), errors.Malformed, None),
        (invalid(type="json_invalid"), errors.Malformed, None),
        (HTTPException(404), errors.NotFound, None),
        (HTTPException(404, "No such document."), errors.NotFound, None),
        (HTTPException(405, headers={"Allow": "GET"}), errors.MethodNotAllowed, None),
        (HTTPException(406, "x"), NotAcceptable, None),
        (HTTPException(408, "x"), SlowBody, None),
        (HTTPException(413, "x"), errors.TooLarge, None),
        (HTTPException(401, "x"), errors.Unauthenticated, None),
        (HTTPException(500, "x"), errors.Fault, None),
        (ClientDisconnect(), errors.Cancelled, None),
        (ZeroDivisionError("/etc/secret"), errors.Fault, None),
        (errors.Conflict("as it is"), errors.Conflict, None),
    ],
)
def test_anything_raised_becomes_an_error_of_ours(raised, kind, field):
    told = translate(raised)
    assert type(told) is kind
    assert told.field == field
    assert "secret" not in told.detail


def test_words_of_routers_and_our_errors_are_kept_and_those_of_others_are_not():
    assert translate(HTTPException(404, "No such document.")).detail == "No such document."
    assert translate(HTTPException(404)).detail == "There is no such route here."
    assert translate(HTTPException(405, headers={"Allow": "GET"})).hint == "It takes GET."
    assert "Expecting value" in translate(invalid(type="json_invalid", ctx={"error": "Expecting value"})).detail
    ours = errors.NotFound("x")
    assert to_safe_error(ours, "The model") is ours
    told = to_safe_error(RuntimeError("/etc/secret"), "The model pranet")
    assert told.detail == "The model pranet failed on this request."
    assert "log" in told.hint


@pytest.mark.parametrize(
    ("where", "form"),
    [
        (scope("/v1/segment"), "problem"), (scope("/v2/models/x/infer"), "oip"),
        (scope("/v1/chat/completions"), "openai"), (scope("/v1/completions"), "openai"),
        (scope("/anything", route=Route()), "openai"), (scope("/anything", route=object()), "problem"),
    ],
)  # fmt: skip
def test_form_follows_the_route(where, form):
    answer = render(where, errors.InvalidOption("threshold is 7.", field="threshold", hint="Use 0 to 1."))
    body = json.loads(answer.body)
    if form == "problem":
        assert (answer.status_code, answer.media_type) == (422, "application/problem+json")
        assert (body["field"], body["hint"], body["code"]) == ("threshold", "Use 0 to 1.", "invalid_option")
    elif form == "openai":
        assert answer.status_code == 400
        assert body["error"]["param"] == "threshold"
    else:
        assert answer.status_code == 400
        assert body == {"error": "threshold is 7. Use 0 to 1."}


@pytest.mark.parametrize(("seconds", "header"), [(None, None), (0.1, "1"), (2.0, "2"), (2.1, "3")])
def test_time_to_come_back_is_told_in_whole_seconds(seconds, header):
    assert render(scope(), errors.QueueFull("x", retry_after=seconds)).headers.get("retry-after") == header


OFFERED = ["application/json", "image/png", "image/webp"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"), ("", "application/json"), ("*/*", "application/json"), ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"), ("image/*", "image/png"), ("image/webp, image/png;q=0.5", "image/webp"),
        ("image/png;q=0.2, application/json;q=0.1", "image/png"), ("image/png;level=1;q=0.7", "image/png"),
        ("image/*;q=0.9, image/png;q=0.1, */*;q=0.2", "image/webp"), ("application/json;q=0, */*", "image/png"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
    ],
)  # fmt: skip
def test_best_liked_offer_is_chosen(accept, chosen):
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png;q=x", "video/*", "*/*;q=0"])
def test_nothing_that_fits_is_said_with_what_is_offered(accept):
    with pytest.raises(NotAcceptable) as refused:
        choose(accept, OFFERED)
    assert refused.value.status == 406
    assert "image/webp" in refused.value.hint


@given(accept=st.text(alphabet="abcimage/*pngjson,;q=.0159 ", max_size=60))
def test_any_header_chooses_an_offer_or_is_refused(accept):
    try:
        assert choose(accept, OFFERED) in OFFERED
    except NotAcceptable:
        assert accept.strip()


@given(order=st.permutations(OFFERED))
def test_among_equals_the_first_offered_wins(order):
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


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b"[]," * 7_000_000 + b"[]]}",
        b'{"a":' + b"{" * 300_000,
        b"[" + b'"",' * 300_000 + b"1]",
        b'{"' + b'\\"' * 10_000_000 + b'":1' + b",1" * 300_000 + b"}",
    ],
    ids=["lists", "depth", "texts", "escapes"],
)
def test_a_body_of_many_parts_is_refused_in_little_time(body):
    begun = time.process_time()
    with pytest.raises(TooLarge, match="250,000 parts"):
        PartsCounter("/v1/x", "").feed(body)
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/x", JSON, b'{"text":"' + b"[,{" * 300_000 + b'"}'),
        ("/v1/x", "image/png", b"{" + b"," * 300_000),
        ("/v1/x", "", b"\x89PNG" + b"," * 300_000),
        ("/v2/models/x/infer", JSON, b"[" + b"1," * 300_000),
        ("/v1/x", JSON, b"[" + b"1," * (MAX_PARTS - 1) + b"1]"),
    ],
    ids=["text", "picture", "no type", "tensors", "limit"],
)
def test_what_is_no_json_or_one_long_text_is_not_counted(path, content_type, body):
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
    answer = await client.post("/v1/strict", content=body, headers={"content-type": JSON})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = await client.post(
        "/v1/strict", content=body, headers={"content-type": "application/x+json; charset=utf-8"}
    )
    assert answer.status_code == 413
    answer = await client.post("/v1/chatting", json={"model": "x", "messages": [[]] * 9_000})
    assert (answer.status_code, answer.json()["field"]) == (422, "messages.0")
    many = await client.post("/v1/chatting", json={"messages": [{"role": "user", "content": ""}] * 10_001})
    assert "10000" in many.json()["detail"]


@pytest.mark.parametrize(
    "body", [{"numbers": ["x"] * 200_000}, {f"k{n}": 1 for n in range(200_000)}], ids=["items", "fields"]
)
async def test_many_errors_are_one_sentence(client, body):
    begun = time.process_time()
    answer = await client.post("/v1/strict", json=body)
    assert answer.status_code == 422
    assert "200,00" in answer.json()["detail"]
    assert time.process_time() - begun < 3.0
    few = await client.post("/v1/strict", json={"numbers": ["x", "y"]})
    assert few.json()["detail"].startswith("numbers.0: Input should be a valid integer")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [{}] * 9_000}, {"prompt": ["x"] * 9_000 + [0]}, {"prompt": [-1] * 200_000},
        {"prompt": [[-1] * 1000] * 200}, {"prompt": "x", "longctx": {"boundaries": [-1] * 200_000}},
    ],
)  # fmt: skip
def test_lists_of_texts_and_tokens_fail_fast(body):
    with pytest.raises(ValidationError) as failed:
        CompletionRequest.model_validate(body)
    assert failed.value.error_count() <= 4


def test_errors_are_listed_up_to_a_limit():
    for wrong in (MAX_ERRORS, MAX_ERRORS + 1):
        with pytest.raises(ValidationError) as failed:
            Strict.model_validate({"numbers": ["x"] * wrong})
        assert len(list_errors(failed.value)) == (wrong if wrong == MAX_ERRORS else 1)


async def test_who_does_not_know_the_secret_can_be_no_tenant(start_replica):
    made = await start_replica(must_load=False, replica_secret="new,old")
    async with httpx2.AsyncClient(base_url=made.http) as client:
        for headers in ({}, {SECRET_HEADER: "wrong"}, {SECRET_HEADER: "new,old"}, {SECRET_HEADER: ""}):
            answer = await client.get("/v1/models", headers={"x-fovea-tenant": "alice", **headers})
            assert answer.status_code == 401
            assert "gateway only" in answer.json()["detail"]
        for secret in ("new", "old"):
            assert (await client.get("/v1/models", headers={SECRET_HEADER: secret})).status_code == 200
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200)])
async def test_without_a_secret_the_name_must_be_ours(start_replica, host, status):
    made = await start_replica(must_load=False)
    async with httpx2.AsyncClient(base_url=made.http) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status
        assert (await client.get("/v1/models")).status_code == 200


async def test_grpc_asks_for_the_secret_too(start_replica):
    made = await start_replica(must_load=False, replica_secret="s3cret")
    async with grpc.aio.insecure_channel(made.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ServerLive")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"")
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = await call(b"", metadata=((SECRET_HEADER, "s3cret"),))
        assert pb.ServerLiveResponse.FromString(answer).live
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")


def test_the_gateway_sends_the_first_of_its_secrets():
    assert Settings(replica_secret="new, old").replica_credentials == {SECRET_HEADER: "new"}
    assert Settings().replica_credentials == {}
