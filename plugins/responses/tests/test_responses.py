"""OpenAI's Responses API by the `openai` package, against the app under uvicorn on a tiny model."""

import json

import openai
import pytest
from openai.types.responses import response_create_params

from fovea.api.text import ChatChunk
from fovea.api.usage import UsageScanner
from fovea.errors import NotReady
from fovea_responses import response_store, routes
from fovea_responses.build_chat import build_chat
from fovea_responses.response_builder import ResponseBuilder
from fovea_responses.wire import ResponsesRequest
from plugins.steering.tests.test_steering import UP, check_scopes
from services.llm_longctx.tests import test_openai_fields
from services.llm_longctx.tests.conftest import HELLO, MODEL, Server, app_of, say, write_folder
from services.llm_longctx.tests.test_openai_refusals import check_broken, check_refused, part
from services.llm_longctx.tests.test_openai_small_print import check_deadline
from services.llm_longctx.tests.test_reasoning import FORCED, QWEN
from services.llm_longctx.tests.test_state_loading import fields_of

URL = "/v1/responses"
BODY = {"model": MODEL, "input": "a", "max_output_tokens": 4}
SWITCH = {"properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
DEEP = json.loads("[" * 300 + "]" * 300)
TOOL = {"type": "function", "name": "switch", "parameters": {"type": "object", **SWITCH}, "strict": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("responses") / "Tiny Llama", template=QWEN, positions=1024)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "top_k": 5}))
    with Server(app_of(folder, tmp_path_factory.mktemp("data"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client


def test_a_text_is_answered_like_the_same_chat_also_in_events_and_what_only_chats_have_is_ignored(client):
    answer = client.responses.create(model=MODEL, input="Hello", instructions="Be brief.", max_output_tokens=12)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = say(client, messages=turns, max_tokens=12)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
    assert answer.id.startswith("resp_")
    plain, more = (
        client.responses.create(model=MODEL, input="Hello", max_output_tokens=6, temperature=0, extra_body=extra)
        for extra in ({}, {"n": 2, "logprobs": True})
    )
    assert (more.output_text, more.usage.output_tokens) == (plain.output_text, 6)
    assert [warning.split("'")[1] for warning in more.warnings] == ["n", "logprobs"]
    whole = client.responses.create(model=MODEL, input="Hello", max_output_tokens=12)
    with client.responses.stream(model=MODEL, input="Hello", max_output_tokens=12) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    begin = ("created", "in_progress", "output_item.added", "content_part.added")
    assert (kinds[:4], kinds[-1]) == ([f"response.{kind}" for kind in begin], "response.incomplete")
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("metadata", [{"model": "mine"}, {"note": "x" * 5000}])
def test_usage_counts_under_the_model_whatever_a_caller_wrote(server, metadata, is_stream):
    answer = server.http.post(URL, json=BODY | {"metadata": metadata, "stream": is_stream})
    scanner = UsageScanner(is_stream=is_stream)
    scanner.feed(answer.content)
    assert (answer.status_code, scanner.model) == (200, MODEL)


def test_a_turn_with_several_calls_is_one_message_as_in_its_chat(client):
    names = ("one", "two")
    items = [*HELLO, {"role": "assistant", "content": "Wait."}]
    items += [{"type": "function_call", "call_id": name, "name": name, "arguments": "{}"} for name in names]
    items += [{"type": "function_call_output", "call_id": name, "output": "done"} for name in names]
    answer = client.responses.create(model=MODEL, input=items, max_output_tokens=6, temperature=0)
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in names]
    turns = [*HELLO, {"role": "assistant", "content": "Wait.", "tool_calls": calls}]
    turns += [{"role": "tool", "tool_call_id": name, "content": "done"} for name in names]
    chat = say(client, messages=turns, max_tokens=6)
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.output_text == chat.choices[0].message.content


def test_a_forced_function_is_called_and_its_result_goes_on(client):
    options = {"model": MODEL, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    answer = client.responses.create(input="On?", max_output_tokens=300, **options)
    (call,) = answer.output
    assert (call.type, call.name, answer.status) == ("function_call", "switch", "completed")
    assert set(json.loads(call.arguments)) == {"on"}
    events = list(client.responses.create(input="On?", max_output_tokens=300, stream=True, **options))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    turns = [{"role": "user", "content": [{"type": "input_text", "text": "On?"}]}, call.model_dump(), result]
    assert client.responses.create(model=MODEL, input=turns, max_output_tokens=4).output_text


def test_a_stored_response_is_gone_on_from(client):
    first = client.responses.create(model=MODEL, input="Hello", max_output_tokens=6, store=True)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    went_on = {"input": "And then?", "previous_response_id": first.id, "max_output_tokens": 8, "model": MODEL}
    second = client.responses.create(**went_on, store=True)
    said = {"role": "assistant", "content": first.output_text}
    turns = [{"role": "user", "content": "Hello"}, said, {"role": "user", "content": "And then?"}]
    chat = say(client, messages=turns, max_tokens=8)
    assert second.output_text == chat.choices[0].message.content
    assert (second.previous_response_id, second.usage.input_tokens) == (first.id, chat.usage.prompt_tokens)
    with client.responses.stream(**went_on) as stream:
        assert list(stream)[-1].response.output_text == second.output_text
    items = client.responses.input_items.list(second.id).data
    asked = ("user", "input_text")
    assert [(item.role, item.content[0].type) for item in items] == [asked, ("assistant", "output_text"), asked]
    listed = client.responses.input_items.list
    assert [item.id for item in listed(second.id, limit=2)] == [item.id for item in items]  # two pages
    assert listed(second.id, limit=2).data == items[:2]
    assert listed(second.id, after=items[0].id, order="asc").data == items[1:]
    assert listed(second.id, after=items[1].id, order="desc").data == items[:1]
    for bad in ({"after": "nothing"}, {"limit": 0}, {"order": "newest"}):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            listed(second.id, **bad)
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        client.responses.create(**went_on, extra_body={"session_id": "s"})
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="store: true"):
        client.responses.retrieve(first.id)
    third = client.responses.create(model=MODEL, input="So?", previous_response_id=second.id, max_output_tokens=2)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_the_oldest_stored_responses_of_a_tenant_make_room(server, monkeypatch):
    monkeypatch.setattr(response_store, "MAX_RESPONSES", 2)

    def ask(tenant: str) -> str:
        body = {"model": MODEL, "input": "Hello", "store": True, "max_output_tokens": 4}
        answer = server.http.post("/v1/responses", json=body, headers={"x-fovea-tenant": tenant})
        return f"/v1/responses/{answer.json()['id']}"

    others, found = ask("others"), [ask("much") for _ in range(4)]
    seen = [server.http.get(url, headers={"x-fovea-tenant": "much"}).status_code for url in found]
    assert seen == [404, 404, 200, 200]
    assert server.http.get(others, headers={"x-fovea-tenant": "others"}).status_code == 200


def test_ids_of_items_that_are_no_text_are_given_anew_and_halves_of_characters_refused(client, server):
    body = {"model": MODEL, "max_output_tokens": 2, "store": True}
    body["input"] = [{"id": 5, "role": "user", "content": "Hello"}, {"id": "mine", "role": "user", "content": "!"}]
    first, second = client.responses.input_items.list(server.http.post(URL, json=body).json()["id"]).data
    assert (first.id[:4], second.id) == ("msg_", "mine")
    for field, given in (("metadata", {"a": "\ud800"}), ("tool_choice", {"a": "\ud800"}), ("extra", "\ud800")):
        sent = {"content": json.dumps(body | {field: given}), "headers": {"content-type": "application/json"}}
        answer = server.http.post(URL, **sent, timeout=60)
        assert (answer.status_code, "surrogate" in answer.json()["error"]["message"]) == (400, True), field


def test_what_is_not_to_be_stored_is_not_and_a_stream_is_stored_before_it_says_that_it_is_complete(client):
    answer = client.responses.create(model=MODEL, input="Hello", max_output_tokens=2)
    for unknown in (answer.id, "resp_1", "resp_..%2f"):
        with pytest.raises(openai.NotFoundError, check=lambda e: e.param == "previous_response_id"):
            client.responses.create(model=MODEL, input="And?", previous_response_id=unknown)
    for event in client.responses.create(model=MODEL, input="Hello", max_output_tokens=4, stream=True, store=True):
        if event.type in {"response.completed", "response.incomplete"}:
            assert client.responses.retrieve(event.response.id).output_text == event.response.output_text
            return
    pytest.fail("the stream has no end")


def test_thoughts_are_an_item(client):
    asked = {"model": MODEL, "input": "Hi", "max_output_tokens": 100, "extra_body": FORCED}
    found = client.responses.create(**asked)
    thought, message = found.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "A letter.\n\nThen b?")
    assert found.output_text == "b, I think."
    events = list(client.responses.create(stream=True, **asked))
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == thought.content[0].text
    assert events[-1].response.output[1].content[0].text == message.content[0].text


def respond(client, **fields):
    return client.responses.create(model=MODEL, input=HELLO, temperature=0, max_output_tokens=6, **fields)


def test_a_response_is_steered_looked_into_streamed_and_stored_as_its_chat_is(client):
    capture = [{"type": "activation", "site": "resid_post.1", "positions": "decode"}, {"type": "logit_lens", "top": 2}]
    ours = {"interventions": [UP], "capture": capture}
    chat = say(client, extra_body=ours, max_tokens=6).choices[0]
    response = respond(client, extra_body=ours)
    assert response.output_text == chat.message.content != respond(client).output_text
    assert response.captured == chat.captured
    assert respond(client).captured is None
    capture = [{"type": "activation", "site": "final", "positions": "decode"}]
    whole = respond(client, extra_body={"capture": capture})
    events = list(respond(client, stream=True, extra_body={"capture": capture}))
    pieces = [one for event in events if event.type == "response.captured" for one in event.captured]
    assert [piece["positions"] for piece in pieces] == [[at] for at in whole.captured[0]["positions"]]
    assert [value for piece in pieces for value in piece["values"]] == whole.captured[0]["values"]
    assert events[-1].response.captured == whole.captured
    capture = [{"type": "activation", "site": "final", "positions": [-1]}]
    kept = respond(client, store=True, extra_body={"capture": capture})
    assert client.responses.retrieve(kept.id).captured == kept.captured
    assert respond(client, previous_response_id=kept.id).captured is None


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_that_goes_on_outlives_the_deadline_of_a_whole_answer(server, monkeypatch, stream):
    body = {"input": "a", "max_output_tokens": 20}
    check_deadline(server, monkeypatch, URL, body, stream=stream, end="response.incomplete")


@pytest.mark.parametrize("case", [
    ({"background": True}, "background"), ({"input": []}, "input"), ({"input": part("input_image")}, "input[0]"),
    ({"tools": [TOOL | {"name": "a b"}]}, "tools.0.name"), ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "may be called"),
    ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice.literal['none','auto','required']"),
    ({"input": [{"role": "user"}]}, "input[0]", "no content"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "no"}}}}, "text.format"),
    ({"input": part("input_text")}, "input[0]", "has no text"), ({"input": "long " * 500}, "input", "context"),
    ({"tool_choice": "required"}, "tool_choice", "tools"), ({"metadata": {"a": DEEP}}, None, "nested too deeply"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "tools"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "not served"),
    ({"capture": [{"type": "gradient"}]}, "capture.0"),
])  # fmt: skip
def test_bad_options_are_400_and_name_their_field(server, case):
    check_refused(server, URL, BODY | {"stream": True}, case)


def test_broken_bodies_are_400_a_key_needs_the_scope_and_a_session_stays_with_its_replica(server):
    check_broken(server, URL)
    check_scopes(server, URL, BODY)
    assert fields_of(routes)["affine"] == (URL,)


def test_fields_of_openai_and_vllm_are_served_refused_or_named(client):
    test_openai_fields.check_fields_of_peers(URL, ResponsesRequest, response_create_params.ResponseCreateParamsBase)
    test_openai_fields.check_known_fields(client, URL, BODY, ResponsesRequest)
    test_openai_fields.check_unknown_fields(client, URL, BODY)


def test_unknown_fields_of_nested_objects_are_named_too_also_in_a_stream(client):
    parts = [{"type": "input_text", "text": "Hi", "detial": 1}]
    nested = {
        "input": [{"role": "user", "content": parts, "status": "done"}], "text": {"type": "json_object"},
        "reasoning": {"effort": None, "mode": "deep", "summary": "auto"},
    }  # fmt: skip
    named = ["input[0].content[0].detial'", "reasoning.mode'", "text.type'"]
    test_openai_fields.check_nested_fields(client, URL, BODY | nested, named)
    unknown = {"extra_body": {"frobnicate": 1}, "stream": True}
    events = list(client.responses.create(model=MODEL, input="Hi", max_output_tokens=4, **unknown))
    assert "frobnicate" in events[-1].response.warnings[0]
    answer = client.responses.create(model=MODEL, input="Hi", max_output_tokens=2)
    told = [{"role": "user", "content": "Hi"}, *(one.model_dump() for one in answer.output), *HELLO]
    assert client.responses.create(model=MODEL, input=told, max_output_tokens=2).warnings is None


def test_the_first_event_names_the_model_that_answers_where_none_was_asked_for_and_an_error_is_numbered():
    builder = ResponseBuilder(ResponsesRequest(input="Hello"))
    first, second = builder.feed(ChatChunk(id="a", created=1, model=MODEL, choices=[]))
    assert (first["type"], first["response"]["model"]) == ("response.created", MODEL)
    last = builder.fail(NotReady("Gone."))
    assert [event["sequence_number"] for event in (first, second, last)] == [0, 1, 2]
    assert (last["type"], last["code"], last["message"], last["param"]) == ("error", "not_ready", "Gone.", None)


def test_thoughts_that_are_sent_back_reach_the_template():
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "x"}
    items = [*HELLO, thought, {"role": "assistant", "content": "b"}, call, result, thought, call, thought, *HELLO]
    told = build_chat(ResponsesRequest(input=items)).messages
    assert [(one.role, one.reasoning_content, len(one.tool_calls or ())) for one in told] == [
        ("user", None, 0), ("assistant", "hm", 1), ("tool", None, 0), ("assistant", "hm", 1), ("user", None, 0),
    ]  # fmt: skip
