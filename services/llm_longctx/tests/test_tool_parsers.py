"""Tool parsers: whatever the pieces of an answer, its calls and the text next to them are the same."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.tools import FunctionDefinition
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler
from services.llm_longctx.serving.tools.parsers.hermes import HermesParser
from services.llm_longctx.serving.tools.parsers.llama import LlamaParser
from services.llm_longctx.serving.tools.parsers.qwen import QwenParser
from services.llm_longctx.serving.tools.tool_use import ToolUse, find_parser
from tests.harness.toy_tokenizers import ByteTokenizer

WEATHER = FunctionDefinition(
    name="get_weather",
    parameters={
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"], "additionalProperties": False,
    },
)  # fmt: skip
PARSERS = [HermesParser, LlamaParser, QwenParser]
ARGUMENTS = {"city": 'Paris } "x" </tool_call', "days": 3}


def read(parser_type, pieces, functions=(WEATHER,)):
    parser = parser_type(functions)
    content, calls = "", {}
    for piece in [*pieces, None]:
        text, updates = parser.end() if piece is None else parser.feed(piece)
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


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("parameters", [None, {"type": "object", "properties": {}}])
def test_a_function_without_parameters_takes_none(parser, parameters):
    function = FunctionDefinition(name="ping", parameters=parameters)
    use = ToolUse((function,), parser, is_native=True, is_forced=True, is_parallel=False)
    grammar = GrammarCompiler(ByteTokenizer(), 256).compile(use.grammar_source(), "tools")
    assert grammar.accepts(list(parser.write_call("ping", "{}").encode()))
    assert not grammar.accepts(list(parser.write_call("ping", '{"name": "ping"}').encode()))


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parameter_may_be_anything(parser):
    function = FunctionDefinition(name="keep", parameters={"type": "object", "properties": {"it": True}})
    use = ToolUse((function,), parser, is_native=True, is_forced=True, is_parallel=False)
    grammar = GrammarCompiler(ByteTokenizer(), 256).compile(use.grammar_source(), "tools")
    assert grammar.accepts(list(parser.write_call("keep", '{"it": 3}').encode()))


@pytest.mark.parametrize("parser", PARSERS)
@given(places=st.lists(st.integers(0, 500), max_size=30), count=st.integers(1, 3))
def test_calls_are_read_however_the_answer_is_cut(parser, places, count):
    separator = ";" if parser is LlamaParser else "\n"
    written = separator.join(parser.write_call("get_weather", json.dumps(ARGUMENTS)) for _ in range(count))
    content, calls = read(parser, cut(written, places))
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("get_weather", ARGUMENTS)] * count


@pytest.mark.parametrize("parser", PARSERS)
@given(text=st.text(alphabet='<tool_cal>{}"name:f,=/ \n', max_size=60), places=st.lists(st.integers(0, 60), max_size=9))
def test_text_without_a_call_comes_through_whole(parser, text, places):
    content, calls = read(parser, cut(text, places))
    if not calls:
        assert content == text


@pytest.mark.parametrize("text", [" {", '\n {"name": 3}', '<|python_tag|> {"a": 1}', ';{"a'])
def test_what_stands_before_braces_that_are_no_call_is_kept(text):
    assert (read(LlamaParser, [text]), read(LlamaParser, list(text))) == ((text, []), (text, []))


@pytest.mark.parametrize("parser", [HermesParser, QwenParser])
def test_text_before_a_call_is_content(parser):
    content, calls = read(parser, ["Let me look.\n", parser.write_call("get_weather", '{"city": "Rome"}')])
    assert (content, calls) == ("Let me look.\n", [("get_weather", '{"city": "Rome"}')])


@pytest.mark.parametrize("parser", [HermesParser, LlamaParser])
def test_arguments_stream_as_they_come(parser):
    written = parser.write_call("get_weather", json.dumps({"city": "x" * 50}))
    one = parser((WEATHER,))
    assert sum(bool(one.feed(char)[1]) for char in written) > 50


@pytest.mark.parametrize("parser", [HermesParser, LlamaParser])
def test_a_call_that_is_cut_off_keeps_what_came(parser):
    written = parser.write_call("get_weather", json.dumps(ARGUMENTS))
    place = written.index("Paris") + 3
    content, calls = read(parser, [written[:place]])
    assert (content, calls) == ("", [("get_weather", '{"city": "Par')])


def test_other_orders_and_words_are_understood_and_qwens_values_have_their_types():
    call = '<tool_call>{"arguments": {"city": "Rome"}, "name": "get_weather"}</tool_call>'
    assert read(HermesParser, [call])[1] == [("get_weather", '{"city": "Rome"}')]
    assert read(LlamaParser, ['<|python_tag|>{"name": "f", "parameters": {}}'])[1] == [("f", "{}")]
    for answer in ('{"temperature": 20}', '{"name": "Alice", "email": "a@b.c"}'):
        assert read(LlamaParser, [answer]) == (answer, [])
    assert read(LlamaParser, ['{"name": "ping"}'])[1] == [("ping", "{}")]
    written = QwenParser.write_call("get_weather", json.dumps({"city": "5", "days": 2}))
    assert json.loads(read(QwenParser, [written])[1][0][1]) == {"city": "5", "days": 2}


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ('… <tool_call>\n{"name" …', HermesParser), ("… <tool_call>\n<function=…", QwenParser),
        ('… {"name": function name, "parameters": dictionary of …', LlamaParser), ("nothing known", HermesParser),
    ],
)  # fmt: skip
def test_the_template_says_which_form(template, parser):
    assert find_parser(template) is parser


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("city", ["", "i < n", "vector<int>\n</div>\n", "a </parameter> b", "\n</parameter", '"\\\n"'])
def test_a_text_may_hold_what_tags_are_made_of(parser, city):
    written = parser.write_call("get_weather", json.dumps({"city": city, "days": 2}))
    use = ToolUse((WEATHER,), parser, is_native=True, is_forced=True, is_parallel=True)
    grammar = GrammarCompiler(ByteTokenizer(), 256).compile(use.grammar_source(), "tools")
    assert grammar.accepts(list(f"{written}\n{written}".encode()))
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
    use = ToolUse((WEATHER,), parser, is_native=False, is_forced=True, is_parallel=is_parallel)
    grammar = GrammarCompiler(ByteTokenizer(), 256).compile(use.grammar_source(), "tools")
    for byte in parser.write_call("get_weather", '{"city": "Rome", "days": 2}').encode():
        assert grammar.mask()[byte]
        grammar.advance(byte)
    assert grammar.is_finished is not is_parallel
    refused = GrammarCompiler(ByteTokenizer(), 256).compile(use.grammar_source(), "tools")
    for byte in parser.write_call("get_we", "{}").encode():
        if not refused.mask()[byte]:
            break
        refused.advance(byte)
    else:
        pytest.fail("a function that is not there was accepted")
