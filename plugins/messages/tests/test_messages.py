"""Conformance with the `anthropic` package, against the service behind a gateway, on a tiny model."""

import json

import httpx2
import pytest

from fovea.api.text import ChatChunk, ChatRequest
from fovea_messages.build_chat import build_chat, find_names
from fovea_messages.message_builder import MessageBuilder
from fovea_messages.wire import Conversation
from services.gateway.tests.stage import fronted
from services.llm_longctx.tests.conftest import HELLO, MODEL, Server, app_of, write_folder
from services.llm_longctx.tests.test_reasoning import FORCED, QWEN
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz

SCHEMA = {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False,
}  # fmt: skip
TOOL = {"name": "switch", "description": "Turn it.", "input_schema": SCHEMA}
GREEDY = {"temperature": 0}  # the client does not list it any more
ASK = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "extra_body": GREEDY}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return app_of(write_folder(folder / "Tiny Llama", template=QWEN, positions=1024), folder / "data")


@pytest.fixture(scope="module")
def url(app, tmp_path_factory):
    with fronted(app, "llm-longctx", tmp_path_factory.mktemp("gateway")) as (found, _, _):
        yield found


@pytest.fixture(scope="module")
def client(url):
    import anthropic  # here, because its import takes four seconds of each process that collects tests

    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def both(client, **more):
    whole = client.messages.create(**ASK | more)
    with client.messages.stream(**ASK | more) as stream:
        begin, *events = stream
        streamed = stream.get_final_message()
    kinds = [event.type for event in (begin, *events)]
    used, read = begin.message.usage, whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    assert (used.input_tokens, used.output_tokens) == (read, 0)  # who hangs up later has paid for what was read
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert strip(streamed) == strip(whole)
    return whole


def strip(message):
    content = [block.model_dump(exclude_none=True, exclude={"id", "parsed_output"}) for block in message.content]
    same = [getattr(message, name) for name in ("stop_reason", "stop_sequence", "model", "role", "type")]
    return content, same, message.usage.output_tokens


def chat(url, messages, **more):
    body = {"messages": messages, "max_tokens": 16, "temperature": 0, **more}
    return httpx2.post(f"{url}/v1/chat/completions", json=body).json()


def test_a_message_is_the_answer_of_the_chat_and_a_turn_is_gone_on_with(client, url):
    found = both(client, system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}])
    assert getattr(found, "warnings", None) is None
    same = chat(url, [{"role": "system", "content": "Be brief."}, *HELLO])
    assert found.content[0].text == same["choices"][0]["message"]["content"]
    assert (found.stop_reason, found.id[:4]) == ("max_tokens", "msg_")
    read = found.usage.input_tokens + found.usage.cache_read_input_tokens
    assert (read, found.usage.output_tokens) == (same["usage"]["prompt_tokens"], 16)
    parts = [{"type": "text", "text": text} for text in ("Hello, ", "who are you?")]
    assert both(client, messages=[{"role": "user", "content": parts}], system="Be brief.").content == found.content
    turns = [*HELLO, {"role": "assistant", "content": "I am a "}]
    same = chat(url, turns, continue_final_message=True)["choices"][0]["message"]["content"]
    assert both(client, messages=turns).content[0].text == same
    assert client.messages.create(**ASK | {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]})


def test_stop_sequences_and_unknown_fields_are_named_thinking_is_turned_off_and_refusals_are_not_counted(client):
    text = both(client).content[0].text
    found = both(client, stop_sequences=["never", text[4:7]])
    assert (found.content[0].text, found.stop_reason, found.stop_sequence) == (text[:4], "stop_sequence", text[4:7])
    off = client.messages.count_tokens(model=MODEL, messages=HELLO, thinking={"type": "disabled"}).input_tokens
    assert off > client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert set(json.loads(both(client, output_config=form, max_tokens=100).content[0].text)) == {"on"}
    anthropic = pytest.importorskip("anthropic")
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers is not served"):
        client.messages.count_tokens(model=MODEL, messages=HELLO, extra_body={"mcp_servers": [{}]})
    with pytest.raises(anthropic.BadRequestError, match="no field 'frobnicate'"):
        client.messages.count_tokens(model=MODEL, messages=HELLO, extra_body={"frobnicate": 1, "strict": True})
    assert client.messages.count_tokens(model=MODEL, messages=HELLO, extra_body={"frobnicate": 1}).warnings
    extra = {"extra_body": {"frobnicate": 1, **GREEDY}, "metadata": {"user_id": "me"}}
    assert client.messages.create(**ASK | extra).warnings == ["There is no field 'frobnicate': it was ignored."]
    deltas = [e for e in client.messages.create(**ASK | extra, stream=True) if e.type == "message_delta"]
    assert "frobnicate" in deltas[0].warnings[0]


@pytest.mark.parametrize(("thinking", "effort", "wanted"), [
    (None, "low", "low"), ("enabled", None, "high"), ("enabled", "low", "low"), ("adaptive", "max", "max"),
    ("adaptive", None, None), ("disabled", "max", "none"),
])  # fmt: skip
def test_effort_says_how_much_is_thought_unless_thinking_is_off(thinking, effort, wanted):
    body = {"messages": HELLO, "output_config": {"effort": effort}, "thinking": thinking and {"type": thinking}}
    asked = Conversation.model_validate(body)
    assert build_chat(asked).reasoning_effort == wanted
    named = "thinking" if effort is None or thinking == "disabled" else "output_config.effort"
    assert find_names(asked)["reasoning_effort"] == named


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "switch"}]
)
def test_tools_are_used_and_their_results_are_read(client, choice):
    found = both(client, tools=[TOOL, TOOL | {"name": "other"}], tool_choice=choice, max_tokens=300)
    (use,) = found.content
    assert (found.stop_reason, use.type, use.id[:6], set(use.input)) == ("tool_use", "tool_use", "toolu_", {"on"})
    for limit in (30, 40, 50, 60):  # a call that is cut off is not in a whole message
        cut = client.messages.create(**ASK | {"max_tokens": limit}, tools=[TOOL], tool_choice=choice)
        assert (cut.stop_reason, all(set(block.input) == {"on"} for block in cut.content)) == ("max_tokens", True)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "done"}]}
    turns = [*HELLO, {"role": "assistant", "content": found.content}, {"role": "user", "content": [result]}]
    assert both(client, messages=turns, tools=[TOOL]).content
    shorter = client.messages.count_tokens(model=MODEL, messages=HELLO, tools=[TOOL]).input_tokens
    assert client.messages.count_tokens(model=MODEL, messages=turns, tools=[TOOL]).input_tokens > shorter
    assert both(client, tools=[TOOL], tool_choice={"type": "none"}).stop_reason == "max_tokens"


def test_thoughts_are_blocks_of_their_own(client, monkeypatch):
    read = ChatRequest.model_validate  # a random model says nothing that makes sense: a grammar makes it think
    monkeypatch.setattr(ChatRequest, "model_validate", lambda fields: read({**fields, **FORCED}))
    found = both(client, max_tokens=100)
    said = [(block.type, getattr(block, block.type)) for block in found.content]
    assert said == [("thinking", "A letter.\n\nThen b?"), ("text", "b, I think.")]
    assert both(client, max_tokens=100, messages=[*HELLO, {"role": "assistant", "content": found.content}, *HELLO])


def test_a_call_that_is_left_out_of_the_message_keeps_its_number_in_the_stream():
    builder, call = MessageBuilder([]), {"index": 0, "id": "call_a", "function": {"name": "f", "arguments": "{a"}}
    deltas, told = ({"tool_calls": [call]}, {"content": "b"}), {"finish_reason": "tool_calls", "stop_reason": "b"}
    chunks = [ChatChunk(id="a", created=0, model="m", choices=[{"index": 0, "delta": one} | told]) for one in deltas]
    events = [*(event for chunk in chunks for event in builder.feed(chunk)), *builder.end()]
    assert [event["index"] for event in events if "index" in event] == [0, 0, 0, 1, 1, 1]
    assert (builder.message.content, builder.message.stop_reason) == ([{"type": "text", "text": "b"}], "tool_use")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(("bad", "match"), [
    ({"model": "claude"}, MODEL), ({"model": ""}, "no model ''"), ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image'"),
    ({"tools": [{"type": "web_search", "name": "w"}]}, "input_schema"), ({"system": [{"type": "text"}]}, "no text"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "none of the tools"),
    ({"tools": [TOOL | {"input_schema": {"not": {}}, "strict": True}]}, 'keys: ."not"'),
    ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "disable_parallel"),
    ({"tools": [TOOL | {"name": "a b"}]}, r"tools\.0\.name: "), ({"messages": HELLO * 200}, "context"),
    ({"extra_body": {"frobnicate": 1, "strict": True}}, "frob"), ({"extra_body": {"mcp_servers": [{}]}}, "mcp_serv"),
])  # fmt: skip
def test_errors_have_anthropics_form(client, bad, match):
    anthropic = pytest.importorskip("anthropic")
    for stream in (False, True):
        with pytest.raises(anthropic.APIStatusError, match=match) as caught:
            client.messages.create(**ASK | bad, stream=stream)
        body, status = caught.value.body, caught.value.status_code
        assert (body["type"], bool(body["request_id"]), status) == ("error", True, 404 if "model" in bad else 400)
        assert body["error"]["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]


def change(body):
    """Without a model, else nearly every request stops at an unknown one; and with answers of a few tokens."""
    most = body.get("max_tokens") if isinstance(body, dict) else None
    few = {"max_tokens": min(most, 16)} if isinstance(most, int) else {}
    return body | {"model": None} | few if isinstance(body, dict) else body


def test_the_document_holds_for_every_request_it_allows(app):
    document = build("llm-longctx", servables={}, settings=Settings()).openapi()
    with Server(app) as running:
        fuzz(document, running.url, 5, "/v1/messages", conforms=True, change=change)
