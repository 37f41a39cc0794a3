"""Calls under `auto`: text is free until one begins, then its arguments meet the schema; plain answers stay as is."""

import json

import jsonschema
import pytest
import torch

from fovea.api.tools import FunctionDefinition
from services.llm_longctx.engine import sampler
from services.llm_longctx.serving import chat
from services.llm_longctx.serving.tools.call_grammar import CallGrammar
from services.llm_longctx.serving.tools.parsers.hermes import HermesParser
from services.llm_longctx.serving.tools.parsers.llama import LlamaParser
from services.llm_longctx.serving.tools.parsers.qwen import QwenParser
from services.llm_longctx.serving.tools.tool_use import ToolUse
from services.llm_longctx.tests.conftest import say

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
    generator, grammar, reader, text = torch.Generator().manual_seed(seed), grammar_of(parser, compiler), None, ""
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
    text, reader = codec.decode(tokens), parser(FUNCTIONS)
    _, updates = reader.feed(text)
    _, last = reader.end()
    updates += last
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


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_a_model_begins_by_itself_is_valid(roomy, codec, monkeypatch, stream):
    opening, real = codec.encode("So:\n<tool_call>"), sampler.Sampler._adjust

    def adjust(self, logits):
        produced = int(self._produced.sum())
        if produced >= len(opening):
            return real(self, logits)
        return torch.full_like(logits, -1e4).index_fill(0, torch.tensor(opening[produced]), 0.0)

    monkeypatch.setattr(sampler.Sampler, "_adjust", adjust)
    # A penalty too small to matter: the sampler counts what it drew, which `adjust` reads.
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
