"""Tools and structured output: calls under `auto` and forced ones, streams, templates; plain answers stay as is."""

import json
import re

import jsonschema
import pytest
import torch

from fovea.api.text import ChatRequest
from fovea.api.tools import FunctionDefinition
from services.llm_longctx.engine.requests.logit_rules import LogitRules
from services.llm_longctx.serving import chat
from services.llm_longctx.serving.tools.call_grammar import CallGrammar
from services.llm_longctx.serving.tools.parsers.hermes import HermesParser
from services.llm_longctx.serving.tools.parsers.llama import LlamaParser
from services.llm_longctx.serving.tools.parsers.qwen import QwenParser
from services.llm_longctx.serving.tools.tool_use import ToolUse, read_tool_use
from services.llm_longctx.tests.conftest import HELLO, go_on, say

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"get_weather": PARAMETERS, "get_time": NOTHING}
FUNCTIONS = tuple(FunctionDefinition(name=name, parameters=schema) for name, schema in SCHEMAS.items())
TOOLS = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
OPENINGS = {
    HermesParser: ["<tool_call>", "Let me see.\n<tool_call>", "a < b <tool_call>"],
    QwenParser: ["<tool_call>", "I look.\n\n<tool_call>"],
    LlamaParser: ['{"name": "get_weather", "parameters":', ' {\n"name" :"get_time","arguments" :', "<|python_tag|>"],
}
CASES = [(parser, opening) for parser, found in OPENINGS.items() for opening in found]


def grammar_of(parser, compiler) -> CallGrammar:
    use = ToolUse(FUNCTIONS, parser, is_native=True, is_forced=False, is_parallel=False)
    return CallGrammar(compiler.compile(use.grammar_source(), "tools"), parser, frozenset(SCHEMAS), compiler)


def draw(grammar, generator) -> int:
    """Any token that may come, each as likely as another: no model is less sensible."""
    mask = grammar.mask()
    allowed = torch.arange(256) if mask is None else mask.nonzero()[:, 0]
    token = int(allowed[torch.randint(len(allowed), (1,), generator=generator)])
    grammar.advance(token)
    return token


@pytest.mark.parametrize(("parser", "opening"), CASES, ids=[f"{p.name}-{o[:12]!r}" for p, o in CASES])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_has_begun_ends_as_a_valid_one(compiler, codec, parser, opening, seed):
    generator, grammar = torch.Generator().manual_seed(seed), grammar_of(parser, compiler)
    tokens = codec.encode(opening)
    for token in tokens:
        mask = grammar.mask()
        assert mask is None or mask[token]
        grammar.advance(token)
    if opening == "<|python_tag|>":  # a call may follow, or a program
        assert grammar.mask() is None
        return
    while grammar.mask() is not None and len(tokens) < 3000:
        tokens.append(draw(grammar, generator))
    reader = parser(FUNCTIONS)
    updates = [*reader.feed(codec.decode(tokens))[1], *reader.end()[1]]
    (name,) = [one.name for one in updates if one.name]
    jsonschema.validate(json.loads("".join(one.arguments for one in updates)), SCHEMAS[name])


@pytest.mark.parametrize("parser", OPENINGS)
@pytest.mark.parametrize(
    "text",
    ["Plain <b>text</b> : no call. ", '{"name": "Bob", "age": 5}', '{"name": "nobody", "parameters": 1}', "ü😀 " * 99],
)
def test_text_without_a_call_is_free(compiler, codec, parser, text):
    grammar = grammar_of(parser, compiler)
    for token in codec.encode(text):
        assert grammar.mask() is None
        grammar.advance(token)
    assert not grammar.is_finished


def test_a_token_that_would_begin_an_invalid_call_does_not_come(compiler, monkeypatch):
    monkeypatch.setattr(compiler, "texts", [*compiler.texts[:270], ">!", ">\n{"])
    grammar = grammar_of(HermesParser, compiler)
    for token in (compiler.texts.index(sign) for sign in "<tool_call"):
        grammar.advance(token)
    mask = grammar.mask()
    assert [bool(mask[i]) for i in (270, 271, compiler.texts.index(">"))] == [False, True, True]
    grammar.advance(271)
    assert grammar.mask().sum() == 1


def test_a_plain_answer_beside_tools_keeps_every_bit(roomy, monkeypatch):
    options = {"tools": TOOLS, "temperature": 1.0, "seed": 5, "max_tokens": 60, "logprobs": True, "top_logprobs": 3}
    say(roomy, **options)  # from here on the prompt is cached, so that both read it alike
    found = say(roomy, **options).choices[0]
    monkeypatch.setattr(chat, "_compile_grammar", lambda *_: None)
    plain = say(roomy, **options).choices[0]
    assert (found.message.content, found.logprobs) == (plain.message.content, plain.logprobs)


@pytest.mark.parametrize(("parser", "opening"), CASES[:1])
@pytest.mark.parametrize("is_single", [False, True])
def test_an_answer_without_parallel_calls_ends_with_its_first(roomy, codec, monkeypatch, parser, opening, is_single):
    text = parser.write_call("get_time", "{}")
    monkeypatch.setattr(LogitRules, "apply", lambda self, logits: _force(codec.encode(f"{text}\n{text}"), self, logits))
    options = {"tools": TOOLS, "max_tokens": 3 * len(text), "frequency_penalty": 1e-9, "logit_bias": {"256": 1}}
    choice = say(roomy, parallel_tool_calls=not is_single, **options).choices[0]
    assert (len(choice.message.tool_calls), choice.finish_reason) == (2 - is_single, "tool_calls")


def _force(tokens, rules, logits):
    """Logits under which these tokens come, and then the end."""
    token = [*tokens, 256][min(int(rules._produced.sum()), len(tokens))]
    return torch.full_like(logits, -1e4).index_fill(0, torch.tensor(token), 0.0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_a_model_begins_by_itself_is_valid(roomy, codec, monkeypatch, stream):
    opening, real = codec.encode("So:\n<tool_call>"), LogitRules.apply

    def adjust(self, logits):
        produced = int(self._produced.sum())
        if produced >= len(opening):
            return real(self, logits)
        return torch.full_like(logits, -1e4).index_fill(0, torch.tensor(opening[produced]), 0.0)

    monkeypatch.setattr(LogitRules, "apply", adjust)
    # A penalty too small to matter: the rules count what was drawn, which `adjust` reads.
    options = {"tools": TOOLS, "temperature": 1.2, "seed": 1, "max_tokens": 400, "frequency_penalty": 1e-9}
    if stream:
        with roomy.chat.completions.stream(
            messages=[{"role": "user", "content": "?"}], model="tiny-llama", **options
        ) as events:
            kinds = {event.type for event in events}
            choice = events.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds
    else:
        choice = say(roomy, **options).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.message.content.startswith("So:")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


WEATHER, TIME = TOOLS


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_forced_call_is_valid(roomy, choice, temperature):
    answer = say(
        roomy, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, temperature=temperature, max_tokens=300
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
    assert (call.id[:5], call.function.name) == ("call_", "get_weather")
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


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_that_is_cut_is_no_error_and_leaves_no_markup(roomy, choice):
    answer = say(roomy, tools=[WEATHER], tool_choice=choice, max_tokens=70).choices[0]
    assert (answer.finish_reason, answer.message.tool_calls[0].function.name) == ("length", "get_weather")
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


def test_descriptions_and_calls_keep_their_letters_where_a_template_knows_no_tools():
    city = {"name": "wetter", "description": "Wetter für eine Größe 東京"}
    messages = [{"role": "user", "content": "Hallo"}]
    request = ChatRequest(messages=messages, tools=[{"type": "function", "function": city}])
    call = {"id": "1", "type": "function", "function": {"name": "wetter", "arguments": {"ort": "Köln"}}}
    turns = [*messages, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = "".join(turn["content"] for turn in read_tool_use(request, None).instruct(turns))
    assert "Größe 東京" in text
    assert "Köln" in text
