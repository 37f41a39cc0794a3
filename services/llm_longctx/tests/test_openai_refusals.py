"""Refusals of OpenAI's routes, in OpenAI's form: never a 5xx for bad input, never a 422."""

import json

import openai
import pytest

from services.llm_longctx.api import openai as routes
from services.llm_longctx.tests.conftest import HELLO, MODEL, Server, app_of, go_on, say
from services.llm_longctx.tests.tiny_models import CONTEXT, write_folder
from tests.harness.waiting import wait_until as until

JSON = {"content-type": "application/json"}


OUT_OF_RANGE = {
    "temperature": [-0.1, "hot"], "n": [0, 65], "min_tokens": [-1, 5], "max_tokens": [0, 2.5], "seed": [2**63],
    "top_logprobs": [2], "stop": [["a"] * 17, 5], "response_format": [{"type": "json_schema"}],
    "functions": [[{"name": "f"}]], "stop_token_ids": [[272]], "allowed_token_ids": [[], [272]],
    "prompt_logprobs": [21], "top_p": [1.5], "presence_penalty": [3], "frequency_penalty": [-3],
}  # fmt: skip


def tool(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


TOOL = tool("f")


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        *(({name: value}, name) for name, values in OUT_OF_RANGE.items() for value in values),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ""}, "stop.0"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]"),
        ({"logit_bias": {"272": 1}}, "logit_bias"),
        ({"tools": [TOOL] * 2}, "tools"),
        ({"tools": [tool(f"f{i}") for i in range(200)]}, "tools"),
        ({"tools": [tool("f", parameters={"type": "strin"})]}, "tools"),
        ({"tools": [tool("f", parameters={"$ref": "#"})]}, "tools"),
        ({"tools": [tool("a b")]}, "tools.0.function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": tool("g")}, "tool_choice"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"longctx": {"method": "denser"}}, "longctx.method"),
        ({"longctx": {"method": "dense", "sink": 4}}, "longctx.sink"),
        ({"longctx": {"method": "duo"}}, "longctx.roles"),
        ({"longctx": {"method": "duo", "plan": "mine"}}, "longctx.plan"),
        ({"longctx": {"method": "duo", "plan": {"schema": "head-plan/1"}}}, "plan"),
        ({"longctx": {"method": "duo", "share": 0.5, "knobs": {"share": 1}}}, "longctx.share"),
        ({"longctx": {"method": "power", "kv_ratio": 0.5}}, "longctx"),
        ({"longctx": {"kv_ratio": 0.5, "kv_bytes": 5}}, "longctx.kv_ratio"),
        ({"longctx": {"method": "snapkv", "kv_ratio": 0.5, "budget": 10}}, "longctx.budget"),
        ({"longctx": {"method": "snapkv", "kv_ratio": 0.5, "knobs": {"ratio": 0.3}}}, "longctx.ratio"),
        ({"longctx": {"kv_ratio": 0}}, "longctx.kv_ratio"),
        ({"longctx": {"prefill": "recycled"}}, "longctx"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_k": -2}, "top_k"),
    ],
)
def test_bad_options_are_400_and_name_their_field(server, bad, param):
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 4} | bad
    answer = server.http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["param"] == param


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(server, value):
    body = json.dumps({"messages": HELLO, "temperature": "T"}).replace('"T"', value)
    answer = server.http.post("/v1/chat/completions", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": 1}', b"[" * 100_000])
def test_broken_bodies_are_400(server, body):
    for route in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        answer = server.http.post(f"{route}", content=body, headers=JSON)
        assert answer.status_code == 400, (route, answer.text)
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"suffix": "end"}, "suffix"), ({"best_of": 3}, "best_of"), ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"), ({"prompt": []}, "prompt"),
        ({"prompt": [272]}, "prompt"), ({"prompt": "\udfff"}, "prompt"),
    ],
)  # fmt: skip
def test_bad_completions_are_400_and_name_their_field(server, bad, param):
    body = json.dumps({"prompt": "a", "max_tokens": 2} | bad)
    answer = server.http.post("/v1/completions", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": HELLO}), ("/tokenize", {"prompt": "x" * 10_000}),
        ("/detokenize", {"tokens": [272]}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [2**40]}),
    ],
)  # fmt: skip
def test_the_tokenizers_routes_refuse_in_the_same_form(server, route, body):
    answer = server.http.post(f"{route}", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_an_unknown_model_is_404_with_openais_code(client):
    for call in (lambda: say(client, model="gpt-5"), lambda: go_on(client, model="gpt-5")):
        with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("prompt", ["x" * (CONTEXT + 1), "x" * 1_000_000])
def test_a_prompt_over_the_context_has_openais_code(client, prompt):
    for call in (
        lambda: go_on(client, prompt),
        lambda: say(client, messages=[{"role": "user", "content": prompt}], stream=True),
    ):
        with pytest.raises(openai.BadRequestError, match="context") as caught:
            call()
        assert caught.value.code == "context_length_exceeded"


def test_the_context_counts_for_token_ids_too(client):
    with pytest.raises(openai.BadRequestError, match="193 tokens"):
        go_on(client, [5] * (CONTEXT + 1))


def test_going_away_stops_the_work_within_a_step(server, client):
    engine = server.app.state.host.servable(MODEL).adapter.scheduler
    stream = say(client, stream=True, max_tokens=150)
    next(iter(stream))
    stream.close()
    until(lambda: engine.in_flight == 0, 10)


def test_a_full_queue_is_429_with_retry_after(server, monkeypatch):
    engine = server.app.state.host.servable(MODEL).adapter.scheduler
    monkeypatch.setattr(engine.waiting, "max_waiting", 0)
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
    answer = server.http.post(
        "/v1/completions", json={"prompt": "a", "stream": True}, headers={"x-fovea-deadline-ms": "200"}
    )
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
