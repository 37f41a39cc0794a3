"""From tokens to text: pieces of an answer, with a scripted engine in the place of a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_longctx.engine import Sampling, Token
from services.llm_longctx.serving.generation import Generation, Prompt
from shared.errors import Cancelled, QueueFull
from shared.lm.tokenizer import Tokenizer
from shared.registry import CallContext


class Script:
    """An engine that says what it was told to, until the sink has enough."""

    def __init__(self, *answers, end="length"):
        self.answers, self.how, self.requests = list(answers), end, []

    def submit(self, request):
        """Answer at once; without an answer left, the queue is full."""
        if not self.answers:
            raise QueueFull("full")
        self.requests.append(request)
        for choice in request.choices:
            if request.score_prompt:
                choice.sink.prompt([Token(i, -1.0) for i in request.ids[1:]])
            self._say(choice.sink, self.answers.pop(0))

    def _say(self, sink, tokens):
        for count, token in enumerate(tokens, 1):
            if sink.token(Token(token, -0.5)):
                sink.end("stop", count)
                return
        sink.end(self.how, len(tokens))
        sink.end("length", 99)  # an end after the end says nothing


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


def run(tokenizer, script, *prompts, n=1):
    generation = Generation(script, tokenizer, CallContext())
    for prompt in prompts:
        generation.begin(prompt, [Sampling()] * n)
    return list(generation)


def joined(pieces, index=0):
    return "".join(p.text for p in pieces if p.index == index)


def test_pieces_are_whole_characters_and_the_end_has_the_reason(tokenizer):
    pieces = run(tokenizer, Script(tokenizer.encode("a😀b")), Prompt([1], 9))
    assert [p.text for p in pieces] == ["a", "😀", "b", ""]
    assert [p.reason for p in pieces] == [None, None, None, "length"]
    assert pieces[-1].produced == len("a😀b".encode())
    assert all(p.tokens == () for p in pieces), "no log-probabilities were asked for"


def test_an_answer_cut_inside_a_character_ends_in_a_replacement(tokenizer):
    assert joined(run(tokenizer, Script(tokenizer.encode("a😀")[:-1]), Prompt([1], 9))) == "a�"


def test_answers_and_prompts_have_places_of_their_own(tokenizer):
    script = Script(*(tokenizer.encode(text) for text in ("one", "two", "three", "four")))
    pieces = run(tokenizer, script, Prompt([1], 9), Prompt([2], 9), n=2)
    assert [joined(pieces, i) for i in range(4)] == ["one", "two", "three", "four"]
    assert [r.ids for r in script.requests] == [[1], [2]]
    assert sum(p.produced for p in pieces) == len("onetwothreefour")


@settings(deadline=None)
@given(text=st.text("ab😀 ", max_size=20), stop=st.text("ab😀", min_size=1, max_size=3))
def test_tokens_that_are_told_spell_the_text_that_is_shown(tokenizer, text, stop):
    pieces = run(tokenizer, Script(tokenizer.encode(text)), Prompt([1], 99, stops=[stop], top=0))
    shown = joined(pieces)
    assert shown == text.split(stop)[0]
    told = [s for p in pieces for s in p.tokens]
    assert b"".join(tokenizer.token_bytes(s.token.id) for s in told).decode() == shown
    assert [s.offset for s in told] == sorted(s.offset for s in told)
    assert pieces[-1].reason == ("stop" if stop in text else "length")
    come = ""
    for piece in pieces:
        come += piece.text
        assert all(s.offset < len(come) for s in piece.tokens), "a token comes with its text, not before"


def test_a_stop_ends_the_answer_at_its_last_token(tokenizer):
    pieces = run(tokenizer, Script(tokenizer.encode("abcdef")), Prompt([1], 99, stops=["cd"]))
    assert joined(pieces) == "ab"
    assert pieces[-1].produced == 4


def test_an_echo_shows_the_prompt_once_for_each_answer(tokenizer):
    ids = tokenizer.encode("ü!")
    prompt = Prompt(ids, 9, stops=["!"], top=1, echo=True)
    pieces = run(tokenizer, Script(*[tokenizer.encode("x!y")] * 2), prompt, n=2)
    for index in (0, 1):
        assert joined(pieces, index) == "ü!x"
        told = [s for p in pieces if p.index == index for s in p.tokens]
        assert [s.token.id for s in told] == [*ids, *tokenizer.encode("x")]
        assert [s.token.logprob for s in told] == [None, -1.0, -1.0, -0.5]
        assert [s.offset for s in told] == [0, 0, 1, 2]


def test_an_echo_leaves_out_what_the_caller_did_not_write(tokenizer):
    (end,) = tokenizer.special
    pieces = run(tokenizer, Script([]), Prompt([end, *tokenizer.encode("a"), end], 0, echo=True, hidden=1))
    assert joined(pieces) == "a<|im_end|>"


def test_an_error_is_raised_where_the_pieces_are_read(tokenizer):
    script = Script(tokenizer.encode("ab"), end=Cancelled("gone"))
    generation = Generation(script, tokenizer, CallContext())
    generation.begin(Prompt([1], 9), [Sampling()])
    with pytest.raises(Cancelled):
        list(generation)
    assert script.requests[0].dropped


def test_a_full_queue_drops_what_was_begun(tokenizer):
    script = Script(tokenizer.encode("ab"))
    generation = Generation(script, tokenizer, CallContext())
    generation.begin(Prompt([1], 9), [Sampling()])
    with pytest.raises(QueueFull):
        generation.begin(Prompt([1], 9), [Sampling()])
    assert script.requests[0].dropped


def test_leaving_early_drops_all_requests(tokenizer):
    script = Script(tokenizer.encode("ab"), tokenizer.encode("cd"))
    generation = Generation(script, tokenizer, CallContext())
    for _ in range(2):
        generation.begin(Prompt([1], 9), [Sampling()])
    pieces = iter(generation)
    next(pieces)
    pieces.close()
    assert all(request.dropped for request in script.requests)
