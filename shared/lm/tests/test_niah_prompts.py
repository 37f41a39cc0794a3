"""Needles and keys: the answer stands where the prompt says, the same seed hides the same thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from fovea.errors import InvalidOption
from shared.lm.niah_prompts import (
    NEEDLES,
    build_haystack,
    build_key_value_prompt,
    build_needle_context,
    build_needle_prompt,
    needle_span,
)
from shared.lm.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def tokenizer(chat: bool = False) -> Tokenizer:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizer(library, chat_template=TEMPLATE if chat else None)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("depth", [0, 35, 70, 100])
def test_span_of_a_needle_is_its_answer(depth, chat):
    codec = tokenizer(chat)
    prompt = build_needle_prompt(codec, NEEDLES[0], 1200, depth, seed=3)
    start, end = prompt.span
    # The first window that covers nine tenths of the answer's distinct tokens may begin a little early.
    assert abs(start - prompt.ids.index(codec.encode(NEEDLES[0].answer)[0], start)) <= len(NEEDLES[0].answer)
    assert end - start in {len(NEEDLES[0].answer), len(NEEDLES[0].answer) + 1}
    assert codec.decode(prompt.ids) == prompt.text
    assert prompt.text.startswith("<user>") is chat


def test_answer_follows_a_template_at_once_bare_text_after_a_space_and_in_an_own_corpus():
    assert build_needle_prompt(tokenizer(True), NEEDLES[1], 900, 50).answer == NEEDLES[1].answer
    assert build_needle_prompt(tokenizer(), NEEDLES[1], 900, 50).answer == f" {NEEDLES[1].answer}"
    assert "lorem ipsum" in build_needle_context(tokenizer(), NEEDLES[0], 800, 50, corpus="lorem ipsum. " * 100)
    with pytest.raises(InvalidOption, match="haystack has 130 tokens; a prompt of 800 needs"):
        build_needle_context(tokenizer(), NEEDLES[0], 800, 50, corpus="lorem ipsum. " * 10)


def test_depth_moves_the_needle_and_full_stops_hold_it():
    read = [build_needle_context(tokenizer(), NEEDLES[2], 2000, depth) for depth in (0, 25, 50, 75, 100)]
    places = [text.index(NEEDLES[2].sentence) for text in read]
    assert (places, places[0]) == (sorted(places), 0)
    assert all(text[place - 2] == "." for text, place in zip(read[1:-1], places[1:-1], strict=True))
    assert read[-1].endswith(NEEDLES[2].sentence)


@pytest.mark.parametrize("words", [0, 4])
def test_key_value_asks_for_a_key_that_no_example_solved(words):
    prompt = build_key_value_prompt(tokenizer(), pairs=6, seed=5, shots=2, key_chars=6, value_words=words)
    asked = prompt.text.rsplit("Key: ", 1)[1].split("\n")[0]
    assert prompt.text.count(asked) == 2
    start, end = prompt.span
    answer = prompt.answer.strip()
    assert abs(start - prompt.text.index(answer)) <= len(answer)
    assert len(set(prompt.ids[start:end]) & set(tokenizer().encode(answer))) > 0.9 * len(set(answer))


def test_seed_decides_everything():
    first, second, third = (build_key_value_prompt(tokenizer(), seed=seed).text for seed in (1, 1, 2))
    assert first == second != third
    assert build_haystack(300, 1) == build_haystack(300, 1) != build_haystack(300, 2)


@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.lists(st.integers(6, 50), min_size=1, max_size=6, unique=True),
    st.integers(0, 30),
)
def test_needle_is_found_where_it_was_put(hay, pin, place):
    prompt = [*hay[:place], *pin, *hay[place:]]
    assert needle_span(prompt, pin) == (min(place, len(hay)), min(place, len(hay)) + len(pin))


def test_absent_and_empty_needles_are_not_found():
    for prompt, needle in (([1, 2, 3], [4, 5]), ([1, 2, 3], []), ([1, 2], [1, 2, 3])):
        assert needle_span(prompt, needle) is None
