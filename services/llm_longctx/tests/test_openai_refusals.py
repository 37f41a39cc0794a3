"""Refusals of OpenAI's routes, in OpenAI's form, and schemathesis: never a 5xx for bad input, never a 422."""

import json
import math

import openai
import pytest

from services.llm_longctx.api import openai as routes
from services.llm_longctx.tests.conftest import HELLO, MODEL, Server, app_of, go_on, say
from services.llm_longctx.tests.tiny_models import CONTEXT, write_folder
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz
from tests.harness.waiting import wait_until as until

JSON = {"content-type": "application/json"}


def tool(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


def part(kind):
    return [{"role": "user", "content": [{"type": kind}]}]


TOOL, BAD_SCHEMAS = tool("f"), ({"type": "strin"}, {"$ref": "#"})
CHAT = {
    "temperature": [-0.1, "hot", math.nan, math.inf, -math.inf], "n": [0, 65], "min_tokens": [-1, 5],
    "max_tokens": [0, 2.5], "seed": [2**63], "top_logprobs": [2], "stop": [["a"] * 17, 5],
    "response_format": [{"type": "json_schema"}], "messages": [[], [{"role": "user", "content": "\ud800"}]],
    "repetition_penalty": [0], "functions": [[{"name": "f"}]], "stop_token_ids": [[272]],
    "allowed_token_ids": [[], [272]], "top_k": [-2], "prompt_logprobs": [21], "top_p": [1.5],
    "presence_penalty": [3], "frequency_penalty": [-3],
    "tools": [[TOOL] * 2, [tool(f"f{i}") for i in range(200)], *([tool("f", parameters=bad)] for bad in BAD_SCHEMAS)],
    "tool_choice": ["required"], "logit_bias": [{"272": 1}],
    "structured_outputs": [{"regex": "("}, {"regex": "\ud800"}],
}  # fmt: skip
LONGCTX = [
    ({"method": "denser"}, ".method"), ({"method": "dense", "sink": 4}, ".sink"), ({"method": "duo"}, ".roles"),
    ({"method": "duo", "plan": "mine"}, ".plan"), ({"method": "duo", "share": 0.5, "knobs": {"share": 1}}, ".share"),
    ({"method": "power", "kv_ratio": 0.5}, ""), ({"method": "act", "heads": [[0, 1]], "kv_ratio": 0.5}, ""),
    ({"kv_ratio": 0.5, "kv_bytes": 5}, ".kv_ratio"),
    ({"method": "snapkv", "kv_ratio": 0.5, "budget": 10}, ".budget"), ({"kv_ratio": 0}, ".kv_ratio"),
    ({"method": "snapkv", "kv_ratio": 0.5, "knobs": {"ratio": 0.3}}, ".ratio"), ({"prefill": "recycled"}, ""),
]  # fmt: skip
REFUSED = {
    "/v1/chat/completions": [
        *(({name: value}, name) for name, values in CHAT.items() for value in values),
        *(({"longctx": longctx}, f"longctx{param}") for longctx, param in LONGCTX),
        ({"longctx": {"method": "duo", "plan": {"schema": "head-plan/1"}}}, "plan"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"stop": ""}, "stop.0"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"), ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]"),
        ({"tools": [tool("a b")]}, "tools.0.function.name"), ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [TOOL], "tool_choice": tool("g")}, "tool_choice"),
        ({"messages": part("image_url")}, "messages[0].content"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        *(({"tools": [TOOL], "structured_outputs": form}, "structured_outputs", "tools", next(iter(form)))
          for form in ({"regex": "a"}, {"grammar": 'start: "a"'})),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0", "needs content"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"messages": [{"role": "assistant", "content": "a", "function_call": {"name": "f"}}]},
         "messages[0].function_call", "Use tool_calls"),
    ],
    "/v1/completions": [
        ({"suffix": "end"}, "suffix"), ({"best_of": 3}, "best_of"), ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"), ({"prompt": []}, "prompt"), ({"prompt": [272]}, "prompt"),
        ({"prompt": "\udfff"}, "prompt"), ({"compare": ["dense"]}, "compare", "at least 2"),
    ],
    "/v1/embeddings": [
        ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": [[5, 999]]}, "input"),
        ({"input": ["a"] * 2049}, "input"), ({"input": "x" * 2000}, "input"), ({"dimensions": 33}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"), ({"input": "\udfff"}, "input", "surrogate"),
    ],
    "/tokenize": [(bad, "prompt") for bad in ({}, {"prompt": "a", "messages": HELLO}, {"prompt": "x" * 10_000})],
    "/detokenize": [({"tokens": [bad]}, "tokens" if bad == 272 else "tokens.0") for bad in (272, -1, 2**40)],
}  # fmt: skip
BODIES = {
    "/v1/chat/completions": {"model": MODEL, "messages": HELLO, "max_tokens": 4},
    "/v1/completions": {"model": MODEL, "prompt": "a", "max_tokens": 4},
    "/v1/embeddings": {"model": MODEL, "input": "a"},
}


def check_refused(server, route, body, case):
    """Check the answer to a body with something wrong; a case has that, the field that is named, and words."""
    bad, param, *words = case
    answer = server.http.post(route, content=json.dumps(body | bad), headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert all(word in error["message"] for word in words), error


@pytest.mark.parametrize(("route", "case"), [(route, case) for route, cases in REFUSED.items() for case in cases])
def test_bad_options_are_400_and_name_their_field(server, route, case):
    check_refused(server, route, BODIES.get(route, {}), case)


BROKEN = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": 1}', b"[" * 100_000)


def check_broken(server, route):
    for body in BROKEN:
        answer = server.http.post(route, content=body, headers=JSON)
        assert answer.status_code == 400, (body[:20], answer.text)
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("route", REFUSED)
def test_broken_bodies_are_400(server, route):
    check_broken(server, route)


def test_an_unknown_model_is_404_with_openais_code(client):
    for call in (say, go_on, lambda client, model: client.embeddings.create(model=model, input="a")):
        with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
            call(client, model="gpt-5")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("prompt", ["x" * (CONTEXT + 1), "x" * 1_000_000, [5] * (CONTEXT + 1)])
def test_a_prompt_over_the_context_has_openais_code(client, prompt):
    calls = [lambda: go_on(client, prompt)]
    if isinstance(prompt, str):
        calls.append(lambda: say(client, messages=[{"role": "user", "content": prompt}], stream=True))
    for call in calls:
        with pytest.raises(openai.BadRequestError, match="context") as caught:
            call()
        assert caught.value.code == "context_length_exceeded"


def test_going_away_stops_the_work_within_a_step(server, client):
    engine = server.app.state.host.servable(MODEL).adapter.scheduler
    stream = say(client, stream=True, max_tokens=150)
    next(iter(stream))
    stream.close()
    until(lambda: engine.in_flight == 0, 10)


def test_a_full_queue_is_429_with_retry_after(server, monkeypatch):
    monkeypatch.setattr(server.app.state.host.servable(MODEL).adapter.scheduler.waiting, "max_waiting", 0)
    answer = server.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_stream_that_waits_for_its_turn_tells_its_place_and_clients_skip_it(server, client, monkeypatch):
    scheduler = server.app.state.host.servable(MODEL).adapter.scheduler
    patient, fits, places = 0.02, scheduler.backend.fits, []
    monkeypatch.setattr(routes, "FIRST_CHUNK_WAIT_S", patient)
    monkeypatch.setattr(scheduler.backend, "fits", lambda *args: len(places) > 2 and fits(*args))
    body = {"messages": HELLO, "max_tokens": 2, "temperature": 0, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = iter(answer.iter_lines())
        while (line := next(lines)).startswith(":") or not line:
            places.append(line)
        assert line.startswith("data: ")
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert places[:2] == [": 1 in the queue", ""]
    monkeypatch.setattr(routes, "FIRST_CHUNK_WAIT_S", 0)
    texts = [c.choices[0].delta.content or "" for c in say(client, stream=True)]
    assert "".join(texts) == say(client).choices[0].message.content


def test_what_goes_wrong_while_a_stream_waits_is_told_in_the_stream(server, monkeypatch):
    scheduler = server.app.state.host.servable(MODEL).adapter.scheduler
    monkeypatch.setattr(routes, "FIRST_CHUNK_WAIT_S", 0.02)
    monkeypatch.setattr(scheduler.backend, "fits", lambda *_: False)
    body, limit = {"prompt": "a", "stream": True}, {"x-fovea-deadline-ms": "200"}
    answer = server.http.post("/v1/completions", json=body, headers=limit)
    assert answer.status_code == 200
    *waited, error, end = answer.text.split("\n\n")
    assert set(waited) == {": 1 in the queue"}
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert not end
    until(lambda: scheduler.in_flight == 0)


def test_a_model_without_template_completes_but_does_not_chat(tmp_path):
    with Server(app_of(write_folder(tmp_path / "plain.model", template=None), tmp_path)) as plain:
        assert go_on(plain.client, model="plain.model").choices[0].text
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            say(plain.client, model="plain.model")


def change(body):
    """Without a model, else nearly every request stops at an unknown one; without what needs a plug-in's Redis."""
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name not in {"session_id", "document_id"}} | {"model": None}


def test_the_document_holds_for_every_request_it_allows(server):
    document = build("llm-longctx", routers=[routes.router], servables={}, settings=Settings()).openapi()
    paths = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
    fuzz(document, server.url, 4, *paths, conforms=True, change=change)
