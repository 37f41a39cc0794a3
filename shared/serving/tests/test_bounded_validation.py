"""Bodies with many parts: refused before they are parsed, and what is validated gives few errors."""

import itertools
import json
import time
from typing import Any

import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from fovea.api.text import ChatRequest, CompletionRequest
from fovea.errors import TooLarge
from shared.asgi.json_bounds import MAX_PARTS, PartsCounter
from shared.validation_errors import MAX_ERRORS, list_errors

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
