"""What a grammar lets through is JSON, all JSON objects pass, and answers end where the grammar does."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_longctx.engine import Sampling
from services.llm_longctx.engine.sampler import Sampler
from services.llm_longctx.serving.grammars.json_grammar import LONGEST_SPACE, JsonGrammar
from services.llm_longctx.serving.grammars.token_grammar import (
    MAX_CHOICES,
    ChoiceGrammar,
    TokenGrammar,
    build_grammar,
    require_feasible,
)
from services.llm_longctx.serving.toy_tokenizers import ByteTokenizer, RecallTokenizer
from services.llm_longctx.tests.conftest import write_folder
from shared.errors import InvalidOption
from shared.lm.tokenizer import Tokenizer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("grammar") / "tiny"))


def walk(state, data):
    for byte in data:
        state = None if state is None else state.feed(byte)
    return state


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=5), st.booleans(), st.sampled_from([None, 1, 3]))
def test_every_object_passes_and_is_complete_at_its_end_only(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return  # half a surrogate pair is no text
    state = JsonGrammar()
    for byte in text:
        assert state is not None
        assert not state.complete
        state = state.feed(byte)
    assert state.complete
    assert state.final
    assert all(state.feed(byte) is None for byte in b' \n{}"0')


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 200))
def test_whatever_passes_is_json_once_it_is_complete(seed, length):
    rng, state, said = random.Random(seed), JsonGrammar(), bytearray()
    favourite = b'{}[]",:\\u0123456789truefalsn-.eE \xc3\xa9\xf0\x9f\x98\x80\x00\xff'
    while not state.complete:
        closing = len(said) > length
        choice = b'"}]:0 e' + b"0123456789ruesalfbx\x80\x90\xa0" if closing else favourite
        may = [byte for byte in choice if state.feed(byte) is not None]
        assert may or not closing, f"{bytes(said)} can't be finished"
        byte = min(may, key=choice.index) if closing else rng.choice(may)
        said.append(byte)
        state = state.feed(byte)
        assert len(said) < 2000
    assert isinstance(json.loads(said.decode()), dict)


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b"1",
        b'{"a" 1}',
        b'{"a":}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":-}',
        b'{"a":1e}',
        b'{"a":.5}',
        b'{"a":tru }',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b'{"a":"\\u12g4"}',
        b'{"a":1,}',
        b"{,}",
        b'{"a":[1,]}',
        b'{"a":[1}',
        b'{"a":1]',
        b'{"a":"\xc0\x80"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xf5\x80\x80\x80"}',
        b'{"a":"\xe9"}',
        b"{'a':1}",
        b"{}{}",
        b"{" + b" " * (LONGEST_SPACE + 1) + b"}",
        b'{"a":' + b"[" * 32,
    ],
)
def test_what_is_no_json_does_not_pass(text):
    assert walk(JsonGrammar(), text) is None


def test_one_of_several_texts():
    choices = ChoiceGrammar(frozenset({b"yes", b"yesterday", b"no"}))
    assert walk(choices, b"yes").complete
    assert not walk(choices, b"yes").final
    assert walk(choices, b"no").final
    assert not walk(choices, b"yest").complete
    assert walk(choices, b"maybe") is None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_sampler_under_a_grammar_says_json_and_then_the_end(tokenizer, temperature):
    torch.manual_seed(0)
    grammar = TokenGrammar(tokenizer, JsonGrammar())
    sampler = Sampler(Sampling(temperature=temperature, seed=3), [], 272, grammar)
    said, closing = [], torch.zeros(272)
    closing[[tokenizer.encode(c)[0] for c in '"}]:0']] = 9
    for step in range(600):
        token = sampler.draw(torch.randn(272) + closing * (step > 40)).id
        if token in tokenizer.eos:
            break
        said.append(token)
    assert isinstance(json.loads(tokenizer.decode(said)), dict)


def test_a_choice_is_made_token_by_token(tokenizer):
    for seed in range(5):
        grammar = TokenGrammar(tokenizer, ChoiceGrammar(frozenset({b"red", b"blue"})))
        sampler, said = Sampler(Sampling(temperature=1, seed=seed), [], 272, grammar), []
        while (token := sampler.draw(torch.randn(272)).id) not in tokenizer.eos:
            said.append(token)
        assert tokenizer.decode(said) in {"red", "blue"}


@pytest.mark.parametrize("given", [None, {}, {"type": "text"}])
def test_text_has_no_grammar(given):
    assert build_grammar(given) is None


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_schema"},
        {"type": "choice"},
        {"type": "choice", "choices": []},
        {"type": "choice", "choices": [1]},
        {"type": "choice", "choices": [""]},
        {"type": "choice", "choices": ["x"] * (MAX_CHOICES + 1)},
        {"type": 5},
    ],
)
def test_formats_that_are_not_served_are_refused(given):
    with pytest.raises(InvalidOption) as caught:
        build_grammar(given)
    assert caught.value.field == "response_format"


@pytest.mark.parametrize("grammar", [JsonGrammar(), ChoiceGrammar(frozenset({b"red"}))])
def test_format_that_no_token_begins_is_refused(grammar):
    with pytest.raises(InvalidOption) as caught:
        require_feasible(grammar, RecallTokenizer(), 42)
    assert caught.value.field == "response_format"


def test_format_that_some_token_begins_is_taken():
    require_feasible(ChoiceGrammar(frozenset({b"red", b" blue"})), RecallTokenizer(), 42)
    require_feasible(JsonGrammar(), ByteTokenizer(), 256)
