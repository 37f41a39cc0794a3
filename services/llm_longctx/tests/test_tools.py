"""Tools and structured output: calls under `auto` and forced ones, in streams, and what parsers read of any pieces."""

import itertools
import json

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLParserLimits

from fovea.api.text import ChatRequest
from fovea.api.tools import FunctionDefinition
from fovea.errors import InvalidOption
from services.llm_longctx.engine.requests.logit_rules import LogitRules
from services.llm_longctx.serving import chat
from services.llm_longctx.serving.grammars import token_grammar
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler
from services.llm_longctx.serving.tools.call_grammar import CallGrammar
from services.llm_longctx.serving.tools.parsers.hermes import HermesParser
from services.llm_longctx.serving.tools.parsers.llama import LlamaParser
from services.llm_longctx.serving.tools.parsers.qwen import QwenParser
from services.llm_longctx.serving.tools.tool_use import ToolUse, find_parser, read_tool_use
from services.llm_longctx.tests.conftest import HELLO, go_on, say
from shared.lm.tokenizer import Tokenizer
from tests.harness.toy_tokenizers import ByteTokenizer

PROPERTIES = {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": [*PROPERTIES], "additionalProperties": False}
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
    while (mask := grammar.mask()) is not None and len(tokens) < 3000:  # any that may come: no model is less sensible
        allowed = mask.nonzero()[:, 0]
        tokens.append(int(allowed[torch.randint(len(allowed), (1,), generator=generator)]))
        grammar.advance(tokens[-1])
    reader = parser(FUNCTIONS)
    updates = [*reader.feed(codec.decode(tokens))[1], *reader.end()[1]]
    (name,) = [one.name for one in updates if one.name]
    jsonschema.validate(json.loads("".join(one.arguments for one in updates)), SCHEMAS[name])


@pytest.mark.parametrize("parser", OPENINGS)
@pytest.mark.parametrize("text", [
    "Plain <b>text</b> : no call. ", '{"name": "Bob", "age": 5}', '{"name": "nobody", "parameters": 1}', "ü😀 " * 99,
])  # fmt: skip
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


@pytest.mark.parametrize("is_single", [False, True])
def test_an_answer_without_parallel_calls_ends_with_its_first(roomy, codec, monkeypatch, is_single):
    text = HermesParser.write_call("get_time", "{}")
    tokens = codec.encode(f"{text}\n{text}")

    def force(rules, logits):
        """Logits under which these tokens come, and then the end."""
        token = [*tokens, 256][min(int(rules._produced.sum()), len(tokens))]
        return torch.full_like(logits, -1e4).index_fill(0, torch.tensor(token), 0.0)

    monkeypatch.setattr(LogitRules, "apply", force)
    options = {"tools": TOOLS, "max_tokens": 3 * len(text), "frequency_penalty": 1e-9, "logit_bias": {"256": 1}}
    choice = say(roomy, parallel_tool_calls=not is_single, **options).choices[0]
    assert (len(choice.message.tool_calls), choice.finish_reason) == (2 - is_single, "tool_calls")


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
    options["stop"] = [">\n{", '"']  # which end texts, but no calls
    if stream:
        with roomy.chat.completions.stream(messages=HELLO, model="tiny-llama", **options) as events:
            assert sum(event.type == "tool_calls.function.arguments.delta" for event in events) > 5
            choice = events.get_final_completion().choices[0]
    else:
        choice = say(roomy, **options).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, choice.message.content[:3]) == ("tool_calls", "So:")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


WEATHER, TIME = TOOLS
CHOICES = ["required", {"type": "function", "function": {"name": "get_weather"}}]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_forced_call_is_valid(roomy, choice, temperature):
    options = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 300}
    (choice,) = say(roomy, temperature=temperature, stop=["<", '"city"'], **options).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.id[:5], call.function.name) == ("call_", "get_weather")
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)


def test_required_calls_some_tool_and_several_stay_apart(roomy):
    answer = say(roomy, tools=[WEATHER, TIME], tool_choice="required", temperature=1.5, seed=3, n=3, max_tokens=900)
    for choice in answer.choices:
        calls = choice.message.tool_calls
        assert 1 <= len({call.id for call in calls}) == len(calls) <= 8
        assert {call.function.name for call in calls} <= {"get_weather", "get_time"}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_forced_call_that_is_cut_is_no_error_and_leaves_no_markup(roomy, codec, choice):
    ends = {"max_tokens": 300, "extra_body": {"stop_token_ids": codec.encode("y")}}
    for reason, more in (("length", {"max_tokens": 70}), ("stop", ends)):
        answer = say(roomy, tools=[WEATHER], tool_choice=choice, **more).choices[0]
        assert (answer.finish_reason, answer.message.tool_calls[0].function.name) == (reason, "get_weather")
    for most in (3, 12):
        options = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": most}
        message = say(roomy, **options).choices[0].message
        assert (message.content, message.tool_calls) == (None, None)
        assert not any(chunk.choices[0].delta.content for chunk in say(roomy, stream=True, **options))


ON = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
FORMS = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": ON, "strict": True}}},
    {"extra_body": {"structured_outputs": {"choice": ['{"on": true}']}}},
]


@pytest.mark.parametrize("form", FORMS)
def test_a_model_chooses_between_a_call_and_the_form_that_is_asked_for(roomy, codec, form, monkeypatch):
    def choose(first, **more):
        bias = {str(codec.encode(first)[0]): 100}
        answer = say(roomy, tools=TOOLS, logit_bias=bias, temperature=1, seed=1, max_tokens=900, **form, **more)
        return answer, answer.choices[0]

    _, called = choose("<")
    for call in called.message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert (called.finish_reason, called.message.content) == ("tool_calls", None)
    assert len(choose("<", parallel_tool_calls=False)[1].message.tool_calls) == 1
    answer, forced = choose("<", tool_choice="required")
    assert (forced.message.content, answer.model_extra["warnings"][0][:21]) == (None, "The answer is a call,")
    answer, written = choose("{")
    assert (written.finish_reason, written.message.tool_calls, answer.model_extra["warnings"]) == ("stop", None, None)
    assert json.loads(written.message.content).keys() == {"on"}
    monkeypatch.setattr(HermesParser, "is_first", True)  # as where calls are JSON without tags
    answer, written = choose("<")
    assert json.loads(written.message.content).keys() == {"on"}
    assert "No tool can be called" in answer.model_extra["warnings"][0]


def test_tools_that_are_too_many_for_one_grammar_are_refused_in_words(compiler, monkeypatch):
    monkeypatch.setattr(token_grammar, "_LIMITS", LLParserLimits(max_grammar_size=90))
    use = ToolUse(FUNCTIONS * 9, HermesParser, is_native=True, is_forced=True, is_parallel=True)
    told = {"field": "tools", "hint": "Offer fewer tools, or describe their parameters more simply."}
    with pytest.raises(InvalidOption, check=lambda e: told.items() <= vars(e).items() and "|" not in e.detail):
        compiler.compile(use.grammar_source(), "tools")


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


def test_a_template_with_tools_gets_them_as_they_are(codec):
    source = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{% endfor %}"
    use = read_tool_use(ChatRequest(messages=HELLO, tools=[WEATHER]), source)
    assert use.is_native
    text = Tokenizer(codec._library, chat_template=source).chat(HELLO, tools=use.describe())
    assert json.loads(text.partition("user:")[0])[0]["function"]["name"] == "get_weather"


def test_descriptions_and_calls_keep_their_letters_where_a_template_knows_no_tools():
    city = {"name": "wetter", "description": "Wetter für eine Größe 東京"}
    messages = [{"role": "user", "content": "Hallo"}]
    request = ChatRequest(messages=messages, tools=[{"type": "function", "function": city}])
    call = {"id": "1", "type": "function", "function": {"name": "wetter", "arguments": {"ort": "Köln"}}}
    turns = [*messages, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = "".join(turn["content"] for turn in read_tool_use(request, None).instruct(turns))
    assert "Größe 東京" in text
    assert "Köln" in text


ANY_CITY = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
GET_WEATHER = FunctionDefinition(name="get_weather", parameters=PARAMETERS | ANY_CITY)
PARSERS = [HermesParser, LlamaParser, QwenParser]
ARGUMENTS = {"city": 'Paris } "x" </tool_call', "days": 3}


def read(parser_type, pieces, functions=(GET_WEATHER,), *, is_cut=False):
    parser = parser_type(functions)
    content, calls = "", {}
    for piece in [*pieces, None]:
        text, updates = parser.end(is_cut=is_cut) if piece is None else parser.feed(piece)
        content += text
        for update in updates:
            if update.name is not None:
                assert update.index == len(calls)
                calls[update.index] = [update.name, ""]
            calls[update.index][1] += update.arguments
    assert parser.num_calls == len(calls)
    return content, [(name, arguments) for name, arguments in calls.values()]


def cut(text, places):
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def forced_grammar(parser, function=GET_WEATHER, *, is_parallel=False):
    use = ToolUse((function,), parser, is_native=True, is_forced=True, is_parallel=is_parallel)
    return GrammarCompiler(ByteTokenizer(), 256).compile(use.grammar_source(), "tools")


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("properties", [None, {}, {"it": True}])
def test_a_function_takes_the_parameters_that_it_has_and_one_may_be_anything(parser, properties):
    parameters = None if properties is None else {"type": "object", "properties": properties}
    grammar = forced_grammar(parser, FunctionDefinition(name="ping", parameters=parameters))
    assert grammar.accepts(list(parser.write_call("ping", "{}").encode()))
    assert grammar.accepts(list(parser.write_call("ping", '{"it": 3}').encode())) is bool(properties)


@pytest.mark.parametrize(("bound", "is_strict"), [
    ({"const": "aa"}, None), ({"enum": ["aa", "b"]}, None), ({"pattern": "^a+$"}, True), ({"maxLength": 2}, True),
])  # fmt: skip
def test_bounds_of_a_text_hold_in_qwens_form_too(bound, is_strict):
    parameters = {"type": "object", "properties": {"x": {"type": "string", **bound}}}
    ping = FunctionDefinition(name="ping", parameters=parameters, strict=is_strict)
    grammar = forced_grammar(QwenParser, ping)
    for text, is_valid in (('"aa"', True), ('"bbb"', False), ("bbb", False)):
        written = QwenParser.write_call("ping", json.dumps({"x": text}))
        assert grammar.accepts(list(written.encode())) is is_valid
        assert not is_valid or read(QwenParser, [written], [ping])[1] == [("ping", '{"x": "aa"}')]


@pytest.mark.parametrize("parser", PARSERS)
@given(places=st.lists(st.integers(0, 500), max_size=30), count=st.integers(1, 3))
def test_calls_are_read_however_the_answer_is_cut(parser, places, count):
    separator = ";" if parser is LlamaParser else "\n"
    written = separator.join(parser.write_call("get_weather", json.dumps(ARGUMENTS)) for _ in range(count))
    content, calls = read(parser, cut(written, places))
    assert (content, [(n, json.loads(a)) for n, a in calls]) == ("", [("get_weather", ARGUMENTS)] * count)


@pytest.mark.parametrize("parser", PARSERS)
@given(text=st.text(alphabet='<tool_cal>{}"name:f,=/ \n', max_size=60), places=st.lists(st.integers(0, 60), max_size=9))
def test_text_without_a_call_comes_through_whole(parser, text, places):
    content, calls = read(parser, cut(text, places))
    assert calls or content == text


@pytest.mark.parametrize("text", [" {", '\n {"name": 3}', '<|python_tag|> {"a": 1}', ';{"a'])
def test_what_stands_before_braces_that_are_no_call_is_kept(text):
    assert (read(LlamaParser, [text]), read(LlamaParser, list(text))) == ((text, []), (text, []))


@pytest.mark.parametrize("parser", [HermesParser, LlamaParser])
def test_arguments_stream_as_they_come(parser):
    written = parser.write_call("get_weather", json.dumps({"city": "x" * 50}))
    one = parser((GET_WEATHER,))
    assert sum(bool(one.feed(char)[1]) for char in written) > 50


@pytest.mark.parametrize("parser", PARSERS)
def test_a_call_that_is_cut_off_keeps_what_came(parser):
    reader, written = parser((GET_WEATHER,)), parser.write_call("get_weather", json.dumps(ARGUMENTS))
    updates = [*reader.feed(written[: written.index("Paris") + 3])[1], *reader.end()[1]]
    kept = "{}" if parser is QwenParser else '{"city": "Par'
    assert ("".join(one.arguments for one in updates), reader.is_last_cut) == (kept, True)


@pytest.mark.parametrize("parser", PARSERS)
def test_the_beginning_of_a_call_at_the_token_limit_is_no_text(parser):
    written, before = parser.write_call("get_weather", json.dumps(ARGUMENTS)), "" if parser.is_first else "So <"
    for size in range(6, written.index("get_weather") + (27 if parser.is_first else 9)):
        assert read(parser, [before + written[:size]], is_cut=True) == (before, [])
        assert read(parser, [before + written[:size]])[0] == before + written[:size]
    for text in ("a <t", "<tool_call> no", '{"na', '{"name": "Bob"', '{"name": "get_weather", "d', "<|pyth"):
        assert read(parser, [text], is_cut=True) == (text, [])
    assert [read(LlamaParser, [tag], is_cut=True)[0] for tag in ("<|python_t", "<|python_tag|>")] == ["", ""]


def test_other_orders_and_words_are_understood_and_qwens_values_have_their_types():
    call = '<tool_call>{"arguments": {"city": "Rome"}, "name": "get_weather"}</tool_call>'
    assert read(HermesParser, [call])[1] == [("get_weather", '{"city": "Rome"}')]
    assert read(LlamaParser, ['<|python_tag|>{"name": "f", "parameters": {}}'])[1] == [("f", "{}")]
    for answer in ('{"temperature": 20}', '{"name": "Alice", "email": "a@b.c"}'):
        assert read(LlamaParser, [answer]) == (answer, [])
    assert read(LlamaParser, ['{"name": "ping"}'])[1] == [("ping", "{}")]
    written = QwenParser.write_call("get_weather", json.dumps({"city": "5", "days": 2}))
    assert json.loads(read(QwenParser, [written])[1][0][1]) == {"city": "5", "days": 2}


@pytest.mark.parametrize(("template", "parser"), [
    ('… <tool_call>\n{"name" …', HermesParser), ("… <tool_call>\n<function=…", QwenParser),
    ('… {"name": function name, "parameters": dictionary of …', LlamaParser), ("nothing known", HermesParser),
])  # fmt: skip
def test_the_template_says_which_form(template, parser):
    assert find_parser(template) is parser


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("city", ["", "i < n", "vector<int>\n</div>\n", "a </parameter> b", "\n</parameter", '"\\\n"'])
def test_a_text_may_hold_what_tags_are_made_of(parser, city):
    written = parser.write_call("get_weather", json.dumps({"city": city, "days": 2}))
    assert forced_grammar(parser, is_parallel=True).accepts(list(f"{written}\n{written}".encode()))
    assert [json.loads(arguments) for _, arguments in read(parser, [written])[1]] == [{"city": city, "days": 2}]


@pytest.mark.parametrize("parser", [HermesParser, LlamaParser])
@pytest.mark.parametrize("name", [r"a\q", "a\nb", r"\u12"])
def test_a_name_that_is_no_json_is_text(parser, name):
    written = parser.write_call("NAME", "{}").replace("NAME", name)
    content, calls = read(parser, [written])
    assert (content.split(), calls) == (written.replace("\n</", "</").split(), [])
    assert LlamaParser.find_opening(written, {"a"}) is None


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("is_parallel", [False, True])
def test_a_forced_call_is_what_the_parser_reads(parser, is_parallel):
    """The grammar accepts what `write_call` writes, and an answer that is over holds one call, or may hold more."""
    grammar = forced_grammar(parser, is_parallel=is_parallel)
    assert not grammar.accepts(list(parser.write_call("get_we", "{}").encode())), "no such function is there"
    for byte in parser.write_call("get_weather", '{"city": "Rome", "days": 2}').encode():
        assert grammar.mask()[byte]
        grammar.advance(byte)
    assert grammar.is_finished is not is_parallel
