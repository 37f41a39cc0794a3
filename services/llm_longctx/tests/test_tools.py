"""Tools and structured output over HTTP: choices, forced calls, streams, results, templates, forms of answers."""

import json
import re

import jsonschema
import pytest

from fovea.api.text import ChatRequest
from services.llm_longctx.serving.tools.tool_use import read_tool_use
from services.llm_longctx.tests.conftest import HELLO, go_on, say
from services.llm_longctx.tests.test_call_grammar import PARAMETERS, TOOLS

WEATHER, TIME = TOOLS
SHORT = [{"role": "user", "content": "?"}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_forced_call_is_valid(roomy, choice, temperature):
    answer = say(
        roomy, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, temperature=temperature, max_tokens=300
    )
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)


def test_required_calls_some_tool_and_several_stay_apart(roomy):
    answer = say(roomy, tools=[WEATHER, TIME], tool_choice="required", temperature=1.5, seed=3, n=3, max_tokens=900)
    for choice in answer.choices:
        calls = choice.message.tool_calls
        assert 1 <= len(calls) <= 8
        assert {call.function.name for call in calls} <= {"get_weather", "get_time"}
        assert len({call.id for call in calls}) == len(calls)


def test_a_stream_brings_the_call_in_pieces(roomy):
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300}
    whole = say(roomy, **options).choices[0].message.tool_calls[0].function
    name, arguments, pieces, reason = "", "", 0, None
    for chunk in say(roomy, stream=True, **options):
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for delta in choice.delta.tool_calls or ():
            assert delta.index == 0
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
            pieces += 1
    assert (name, arguments, reason) == (whole.name, whole.arguments, "tool_calls")
    assert pieces > 5


def test_a_call_cut_off_by_the_limit_is_no_error(roomy):
    answer = say(roomy, tools=[WEATHER], tool_choice="required", max_tokens=70).choices[0]
    assert (answer.finish_reason, answer.message.tool_calls[0].function.name) == ("length", "get_weather")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_that_is_cut_leaves_no_markup(roomy, choice):
    for most in (3, 12):
        options = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": most}
        message = say(roomy, **options).choices[0].message
        assert (message.content, message.tool_calls) == (None, None)
        deltas = [chunk.choices[0].delta for chunk in say(roomy, stream=True, **options)]
        assert not any(delta.content for delta in deltas)


def test_usage_names_what_was_left_to_the_model(roomy):
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": [1]}, "maxItems": 2}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert say(roomy, response_format=form).usage.unenforced == ["uniqueItems"]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"not": {"required": ["a"]}}}}
    assert say(roomy, tools=[tool]).usage.unenforced == ["not"]
    assert go_on(roomy, extra_body={"response_format": form}).usage.unenforced == ["uniqueItems"]
    assert say(roomy).usage.unenforced is None


def test_auto_and_none_leave_the_answer_to_the_model(roomy):
    auto = say(roomy, tools=[WEATHER], max_tokens=8)
    assert auto.choices[0].message.tool_calls is None
    assert auto.choices[0].message.content
    none = say(roomy, tools=[WEATHER], tool_choice="none", max_tokens=8)
    assert none.usage.prompt_tokens == say(roomy, max_tokens=8).usage.prompt_tokens
    assert auto.usage.prompt_tokens > none.usage.prompt_tokens + 100


def test_a_template_with_tools_gets_them_as_they_are(folder):
    from shared.lm.tokenizer import Tokenizer

    source = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{{ m.content }};{% endfor %}"  # noqa: E501
    tokenizer = Tokenizer.from_folder(folder)
    native = Tokenizer(tokenizer._library, chat_template=source)
    request = ChatRequest(messages=HELLO, tools=[WEATHER])
    use = read_tool_use(request, source)
    assert use.is_native
    text = native.chat(HELLO, tools=use.describe())
    assert json.loads(text.partition("user:")[0])[0]["function"]["name"] == "get_weather"


FLAGS = {
    "type": "object", "properties": {"on": {"type": "boolean"}, "level": {"enum": [1, 20, 300]}},
    "required": ["on", "level"], "additionalProperties": False,
}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "flags", "strict": True, "schema": FLAGS}}


def test_a_schema_is_met_under_a_method(client):
    longctx = {"method": "streamingllm", "sink": 4, "recent": 16}
    answer = say(client, response_format=FORM, extra_body={"longctx": longctx}, temperature=1.2, n=2, max_tokens=100)
    for choice in answer.choices:
        assert (choice.finish_reason, set(json.loads(choice.message.content))) == ("stop", {"on", "level"})


def test_completions_take_the_same_forms(client):
    text = go_on(client, extra_body={"structured_outputs": {"regex": "[ab]{3}"}}, temperature=1.0).choices[0].text
    assert re.fullmatch("[ab]{3}", text)
    several = go_on(client, ["x", "y"], extra_body={"structured_outputs": {"choice": ["ab", "cd"]}}, n=2)
    assert {choice.text for choice in several.choices} <= {"ab", "cd"}
    assert json.loads(go_on(client, extra_body={"response_format": FORM}, max_tokens=100).choices[0].text)
