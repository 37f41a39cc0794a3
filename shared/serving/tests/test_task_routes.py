"""`POST /v1/<task>`: every way in, every way out, fields by their types alone, and a clear 4xx for the rest."""

import base64
import contextlib
import json
from typing import Annotated, Literal

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Base64Bytes, BaseModel, Field, create_model

from fovea.api.image import ImageBytes
from fovea.errors import BadInput
from shared.serving import servable_schema
from shared.serving.build_app import build
from shared.serving.http.request_parsing import ParsedRequest, build_requests
from shared.serving.tests import toys
from shared.serving.tests.oip_mirrors import serving
from shared.serving.tests.toys import PNG, TOYS
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz

B64 = base64.b64encode(PNG).decode()
SEEN = {"bytes": len(PNG), "threshold": 0.5, "classes": None, "invert": False, "label": None}
RAW = {"content-type": "image/png"}
FILE, BYTES = {"files": {"image": ("a.png", PNG)}}, {"content": PNG, "headers": RAW}
AS_JSON = {"headers": {"content-type": "application/json"}}
BROKEN_FORM = b'--x\r\ncontent-disposition: form-data; name="threshold"\r\n\r\n0.5\r\n--x--'


def as_form(more=""):
    return {"headers": {"content-type": f"multipart/form-data{more}"}}


@pytest.fixture
async def client(start_client):
    return await start_client(max_images=3, max_body_bytes=100_000)


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["request_id"]) == (status, answer.headers["x-request-id"])
    assert "Traceback" not in answer.text
    return body


async def test_picture_comes_as_multipart_base64_or_raw_bytes(client):
    for how in (
        {"json": {"image": B64}}, {"json": {"image": f"data:image/png;base64,{B64}"}},
        {"json": {"image": B64, "model": "toy/eye"}}, {"files": {"image": ("a.png", PNG, "image/png")}},
        {"files": {"file": ("a.png", PNG)}}, {"files": {"images": ("a.png", PNG)}, "data": {"model": "toy/eye"}},
        {"content": PNG, "headers": RAW}, {"content": PNG, "headers": {"content-type": "image/anything"}},
        {"content": PNG, "headers": {"content-type": "application/octet-stream"}}, {"content": PNG},
        {"content": json.dumps({"image": B64})},
        {"content": b"\xef\xbb\xbf" + json.dumps({"image": B64}).encode(), **AS_JSON},
    ):  # fmt: skip
        answer = await client.post("/v1/segment", **how)
        assert answer.status_code == 200, answer.text
        assert answer.json() == SEEN


async def test_options_mean_the_same_in_json_form_and_query(client):
    for how in (
        {"json": {"image": B64, "threshold": 0.25, "classes": ["a", "b"], "invert": True, "label": "12"}},
        {**FILE, "data": {"threshold": "0.25", "classes": '["a", "b"]', "invert": "true", "label": "12"}},
        {**FILE, "data": {"threshold": ".25", "classes": ["a", "b"], "invert": "1", "label": "12"}},
        {**BYTES, "params": {"threshold": "0.25", "classes": ["a", "b"], "invert": "yes", "label": "12"}},
    ):
        answer = await client.post("/v1/segment", **how)
        options = {"threshold": 0.25, "classes": ["a", "b"], "invert": True, "label": "12"}
        assert answer.json() == {"bytes": len(PNG), **options}


async def test_option_of_the_body_wins_over_the_query_and_the_answer_is_a_picture_where_it_is_asked_for(client):
    answer = await client.post("/v1/segment?threshold=0.9", json={"image": B64, "threshold": 0.1})
    assert answer.json()["threshold"] == 0.1
    answer = await client.post("/v1/segment", content=PNG, headers={**RAW, "accept": "image/png"})
    assert (answer.headers["content-type"], answer.content, answer.headers["vary"]) == ("image/png", PNG, "accept")


async def test_several_pictures_or_files_share_their_options_and_fail_alone_and_one_of_a_list_is_a_list(client):
    body = {"images": [B64, base64.b64encode(b"no png").decode(), "§"], "threshold": 0.75}
    answer = await client.post("/v1/segment", json=body)
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert first == {**SEEN, "threshold": 0.75}
    assert (second["problem"]["code"], second["problem"]["field"]) == ("malformed", "image")
    assert third["problem"]["detail"].startswith("image: the picture is not base64")
    files = [("file", ("a.png", PNG)), ("images", ("b.png", PNG))]
    answer = await client.post("/v1/segment", files=files, data={"label": "x"})
    assert answer.json() == {"results": [{**SEEN, "label": "x"}] * 2}
    assert (await client.post("/v1/segment", json={"images": [B64]})).json() == {"results": [SEEN]}


async def test_too_few_or_many_pictures_and_a_wrong_option_fail_the_whole_list(client):
    for body, status, field in (
        *(({"images": images}, 422, "images") for images in ([], "text", None, {})),
        ({"images": [B64, B64], "threshold": 7}, 422, "threshold"), ({"images": [B64] * 4}, 413, "images"),
    ):  # fmt: skip
        told = problem(await client.post("/v1/segment", json=body), status)
        assert told.get("field") == field
    assert "max_images is 3" in told["detail"]


async def test_bad_input_is_a_clear_problem(client):
    for how, status, field, says in (
        ({"json": {"image": "§§§"}}, 400, "image", "not base64"),
        ({"json": {"image": ""}}, 400, "image", "empty"),
        ({"json": {"image": 7}}, 422, "image", "valid bytes"),
        ({"json": {}}, 422, "image", "required"),
        ({"json": {"image": B64, "threshold": 2}}, 422, "threshold", "less than or equal to 1"),
        ({"json": {"image": B64, "treshold": 0.2}}, 422, "treshold", "no option"),
        ({"json": {"image": B64, "model": 7}}, 422, "model", "text"),
        ({"json": {"image": B64, "model": "nope"}}, 404, "model", "toy/eye"),
        ({"json": {"image": B64, "model": "toy/echo"}}, 422, "model", "does echo"),
        ({"json": {"image": "https://example.org/a.png"}}, 422, "image", "URL"),
        ({"json": {"image": "HTTP://169.254.169.254/"}}, 422, "image", "URL"),
        ({"json": [1, 2]}, 422, "body", "JSON object"),
        ({"content": "{", **AS_JSON}, 400, None, "not JSON"),
        ({"content": b"\xff\xfe", **AS_JSON}, 400, None, "not JSON"),
        ({"content": '{"threshold": NaN}', **AS_JSON}, 400, None, "not JSON"),
        ({"content": "[" * 5000, **AS_JSON}, 400, None, "not JSON"),
        ({"content": b"", **AS_JSON}, 400, None, "not JSON"),
        ({"content": PNG, "headers": {"content-type": "video/mp4"}}, 415, None, "video/mp4"),
        ({"content": PNG, "headers": RAW, "params": {"threshold": "much"}}, 422, "threshold", "valid number"),
        ({"content": PNG, "headers": RAW, "params": {"classes": "[1"}}, 422, "classes", "must be JSON"),
        ({"content": b"GIF89a", "headers": RAW}, 400, "image", "not a PNG"),
        ({"content": b"", "headers": RAW}, 422, "image", "required"),
        ({"files": {"image": ("a.png", b"")}}, 400, "image", "empty"),
        ({"files": {"picture": ("a.png", PNG)}}, 422, "picture", "no file field"),
        ({"files": {"image": ("a.png", PNG)}, "data": {"threshold": "2"}}, 422, "threshold", "less than"),
        ({"data": {"threshold": "0.5"}}, 422, "image", "required"),
        ({"content": b"--x\r\nbroken", **as_form("; boundary=x")}, 422, "image", "required"),
        ({"content": b"--x--", **as_form()}, 400, None, "boundary"),
        ({"content": BROKEN_FORM, **as_form("; boundary=x; charset=undefined")}, 400, None, "form can't be read"),
        ({"content": bytes(100_001), "headers": RAW}, 413, None, "limit is 100,000"),
    ):
        body = problem(await client.post("/v1/segment", **how), status)
        assert (body.get("field"), says in body["detail"]) == (field, True)


async def test_form_that_is_not_offered_is_not_acceptable(client):
    for how, says in (
        ({"content": PNG, "headers": {**RAW, "accept": "text/html"}}, "text/html"),
        ({"content": PNG, "headers": {**RAW, "accept": "image/png"}, "params": {"invert": "true"}}, "no form"),
        ({"json": {"images": [B64, B64]}, "headers": {"accept": "image/png"}}, "JSON only"),
        ({"content": PNG, "headers": {**RAW, "accept": "application/x-ndjson"}}, "x-ndjson"),
    ):
        body = problem(await client.post("/v1/segment", **how), 406)
        assert says in body["detail"]
        assert body["hint"]


async def test_task_without_pictures_takes_json_query_and_form_but_no_files_and_no_raw_body(client):
    for how in (
        {"json": {"text": "ab", "times": 2}}, {"params": {"text": "ab", "times": 2}},
        {"data": {"text": "ab", "times": "2"}},
    ):  # fmt: skip
        assert (await client.post("/v1/echo", **how)).json() == {"text": "abab", "together": 1}
    refused = problem(await client.post("/v1/echo", files={"file": ("a", PNG)}), 422)
    assert refused["hint"] == "This model takes no files."
    problem(await client.post("/v1/echo", content=PNG, headers=RAW), 415)


async def test_streaming_model_sends_events_an_error_is_the_last_record_or_a_status_and_json_comes_at_once(client):
    for media in ("application/x-ndjson", "text/event-stream"):
        answer = await client.post("/v1/plan", json={"text": "a b"}, headers={"accept": media})
        assert answer.headers["content-type"].startswith(media)
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert [json.loads(line)["text"] for line in lines] == ["a", "b"]
    how = {"headers": {"accept": "application/x-ndjson"}}
    answer = await client.post("/v1/plan", json={"text": "a bug"}, **how)
    last = json.loads(answer.text.splitlines()[-1])
    assert (answer.status_code, last["problem"]["status"]) == (200, 500)
    assert problem(await client.post("/v1/plan", json={"text": "bug"}, **how), 500)["code"] == "fault"
    nothing = problem(await client.post("/v1/plan", json={"text": " "}, **how), 422)
    assert nothing["detail"].startswith("The model streamed")
    assert (await client.post("/v1/plan", json={"text": "a b"})).json() == {"text": "a b", "together": 1}


async def test_chat_has_no_domain_route_and_a_model_that_is_not_ready_is_said_before_the_body_is_looked_at():
    kind = type("Chat", (toys.Echo,), {"card": toys.card("c", "chat")})
    app = build("toy", servables={"c": kind}, settings=Settings())
    assert "/v1/chat" not in app.openapi()["paths"]
    app = build("toy", servables=TOYS, settings=Settings())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://toy") as made:
        answer = await made.post("/v1/segment", json={"image": "§"})
    assert (problem(answer, 503)["code"], answer.headers["retry-after"]) == ("not_ready", "2")


def awake(body):
    if isinstance(body, dict):
        return {name: 0 if name == "sleep" else awake(value) for name, value in body.items()}
    return [awake(value) for value in body] if isinstance(body, list) else body


def test_document_holds_for_every_request_it_allows():
    document = build("toy", servables=TOYS, settings=Settings()).openapi()
    with serving(TOYS) as replica:
        wanted = lambda one: not one.path.startswith("/v2")  # noqa: E731
        fuzz(document, replica.http, 5, conforms=True, change=awake, change_query=awake, wanted=wanted)


class Inner(BaseModel):
    size: int = 1


class Tree(BaseModel):
    leaves: "list[Tree]" = Field(default_factory=list)


class Everything(BaseModel):
    image: ImageBytes
    mask: ImageBytes | None = None
    crops: list[ImageBytes] = Field(default_factory=list)
    features: Annotated[bytes, Field(json_schema_extra={"format": "binary"})] | None = None
    count: int = 0
    maybe: int | None = None
    flag: bool = False
    text: str | None = None
    kind: Literal["a", "b"] = "a"
    sizes: list[int] = Field(default_factory=list)
    box: tuple[int, int] | None = None
    inner: Inner | None = None
    tree: Tree | None = None


FIELDS = servable_schema.properties(Everything)


def test_fields_of_bytes_are_found_with_their_media_type_and_schemas_inlined():
    found = servable_schema.blob_fields(Everything)
    assert found == {"image": "image/*", "mask": "image/*", "crops": "image/*", "features": "application/octet-stream"}
    other = create_model("Other", blob=(Base64Bytes, ...))
    assert servable_schema.blob_fields(other) == {"blob": "application/octet-stream"}
    assert "$ref" not in str(servable_schema.inline_refs(Everything))
    assert "$defs" not in servable_schema.inline_refs(Everything)
    assert FIELDS["tree"]["anyOf"][0]["properties"]["leaves"]["items"] == {}


@pytest.mark.parametrize(("field", "values", "meaning"), [
    ("count", ["7"], "7"), ("text", ["null"], "null"), ("text", ["[1"], "[1"), ("kind", ["b"], "b"),
    ("maybe", ["null"], None), ("maybe", ["3"], "3"), ("flag", ["true"], "true"),
    ("sizes", ["[1, 2]"], [1, 2]), ("sizes", ["1", "2"], ["1", "2"]), ("sizes", ["1"], ["1"]),
    ("box", ["[1, 2]"], [1, 2]), ("inner", ['{"size": 3}'], {"size": 3}), ("inner", ["null"], None),
])  # fmt: skip
def test_text_values_mean_what_the_field_s_type_says(field, values, meaning):
    assert servable_schema.decode_text(field, FIELDS[field], values) == meaning


def test_form_fills_fields_of_bytes_by_name_and_several_pictures_share_the_other_files():
    asked = ParsedRequest(files=[("image", b"1"), ("mask", b"2"), ("crops", b"3"), ("crops", b"4"), ("features", b"5")])
    (request,), many = build_requests(asked, Everything, 9)
    assert (request.image, request.mask, request.crops, request.features) == (b"1", b"2", [b"3", b"4"], b"5")
    assert not many
    asked = ParsedRequest(files=[("image", b"1"), ("image", b"2"), ("mask", b"m")])
    found, many = build_requests(asked, Everything, 9)
    assert ([(one.image, one.mask) for one in found], many) == ([(b"1", b"m"), (b"2", b"m")], True)


class Own(BaseModel, extra="allow"):
    images: list[ImageBytes] = Field(default_factory=list)
    model: str = "none"


def test_a_model_gets_the_options_that_have_names_of_ours_and_extra_ones_if_it_wants_them():
    for options in ({"images": ["eA==", "eQ=="]}, {"model": "mine"}, {"more": 1}):
        (request,), many = build_requests(ParsedRequest(options=options), Own, 1)
        wanted = {"images": [b"x", b"y"]} if "images" in options else options
        assert (request.model_dump(exclude_unset=True), many) == (wanted, False)


TEXT, FILE_FIELDS = st.text(max_size=9), ["image", "file", "mask", "crops", "zzz"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    options=st.dictionaries(st.sampled_from([*FIELDS, "images", "model", "else"]), JSON, max_size=5),
    texts=st.dictionaries(st.sampled_from(sorted(FIELDS)), st.lists(TEXT, min_size=1, max_size=3), max_size=4),
    files=st.lists(st.tuples(st.sampled_from(FILE_FIELDS), st.binary(max_size=9)), max_size=4),
)
def test_anything_is_read_or_refused_and_never_crashes(options, texts, files):
    with contextlib.suppress(BadInput):
        found, _ = build_requests(ParsedRequest(options=options, texts=texts, files=files), Everything, 2)
        assert all(isinstance(item, Everything | BadInput) for item in found)
