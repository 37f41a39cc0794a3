"""From tokens to text: pieces of an answer, with a scripted engine in the place of a model, and stop texts."""

import asyncio
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fovea.errors import Cancelled, DeadlineExceeded, QueueFull
from services.llm_longctx.engine import GenerationRequest, Sampling, ScoredToken
from services.llm_longctx.serving import generation
from services.llm_longctx.serving.answer_text import TextOptions
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.stop_strings import StopStringFilter
from shared.registry import CallContext


class Script:
    """An engine that says what it was told to, until the callback has enough."""

    def __init__(self, *answers, end="length"):
        self.answers, self.how, self.requests, self.aborted = list(answers), end, [], []

    def add_request(self, request):
        """Answer at once; without an answer left, the queue is full."""
        if not self.answers:
            raise QueueFull("full")
        self.requests.append(request)
        for answer in range(len(request.samplings)):
            if request.score_prompt:
                request.hooks.on_prompt(answer, [ScoredToken(i, -1.0) for i in request.prompt_ids[1:]])
            self._say(request.hooks, answer, self.answers.pop(0))

    def abort(self, request):
        self.aborted.append(request)

    def _say(self, hooks, answer, tokens):
        for count, token in enumerate(tokens, 1):
            if hooks.on_token(answer, ScoredToken(token, -0.5)):
                hooks.on_finish(answer, "stop", count)
                return
        hooks.on_finish(answer, self.how, len(tokens))
        hooks.on_finish(answer, "length", 99)  # an end after the end says nothing


def ask(ids, **facts):
    return GenerationRequest(ids, max_tokens=9, **facts)


async def read(codec, script, *requests, n=1, most=None, wait_s=None, **options):
    """The pieces of all answers, or the first `most` of them."""
    pieces = []
    deadline = None if wait_s is None else time.monotonic() + wait_s
    with Generation(script, codec, CallContext(deadline=deadline)) as one:
        for request in requests:
            request.samplings = [Sampling()] * n
            one.begin(request, TextOptions(**options))
        while len(pieces) != most and (piece := await one.read()) is not None:
            pieces.append(piece)
    return pieces


def run(codec, script, *requests, **how):
    return asyncio.run(read(codec, script, *requests, **how))


def joined(pieces, index=0):
    return "".join(p.text for p in pieces if p.index == index)


def test_pieces_are_whole_characters_and_the_end_has_the_reason(codec):
    pieces = run(codec, Script(codec.encode("a😀b")), ask([1]))
    assert [(p.text, p.reason) for p in pieces] == [("a", None), ("😀", None), ("b", None), ("", "length")]
    assert pieces[-1].produced == len("a😀b".encode())
    assert all(p.tokens == () for p in pieces), "no log-probabilities were asked for"


@given(text=st.text("ab😀 ", max_size=20), stop=st.text("ab😀", min_size=1, max_size=3))
def test_tokens_that_are_told_spell_the_text_that_is_shown(codec, text, stop):
    pieces = run(codec, Script(codec.encode(text)), ask([1], top_logprobs=0), stops=[stop])
    shown = joined(pieces)
    assert shown == text.split(stop)[0]
    told = [s for p in pieces for s in p.tokens]
    assert b"".join(codec.token_bytes(s.id) for s in told).decode() == shown
    assert [s.offset for s in told] == sorted(s.offset for s in told)
    assert pieces[-1].reason == ("stop" if stop in text else "length")
    come = ""
    for piece in pieces:
        come += piece.text
        assert all(s.offset < len(come) for s in piece.tokens), "a token comes with its text, not before"


def test_an_echo_shows_what_the_caller_wrote_once_for_each_answer(codec):
    ids = codec.encode("ü!")
    request = ask(ids, top_logprobs=1, score_prompt=True)
    pieces = run(codec, Script(*[codec.encode("x!y")] * 2), request, n=2, stops=["!"], echo=True)
    for index in (0, 1):
        assert joined(pieces, index) == "ü!x"
        told = [s for p in pieces if p.index == index for s in p.tokens]
        assert [s.id for s in told] == [*ids, *codec.encode("x")]
        assert ([s.logprob for s in told], [s.offset for s in told]) == ([None, -1.0, -1.0, -0.5], [0, 0, 1, 2])
    (end,) = codec.special
    pieces = run(codec, Script([]), ask([end, *codec.encode("a"), end]), echo=True, hidden=1)
    assert joined(pieces) == "a<|im_end|>"


def test_an_error_is_raised_where_the_pieces_are_read(codec):
    script = Script(codec.encode("ab"), end=Cancelled("gone"))
    with pytest.raises(Cancelled):
        run(codec, script, ask([1]))
    assert script.aborted == script.requests


def test_a_full_queue_refuses_the_first_request_and_lets_others_wait_for_room(codec, monkeypatch):
    monkeypatch.setattr(generation, "_RETRY_S", 0.001)
    with pytest.raises(QueueFull):
        run(codec, Script(), ask([1]))
    script = Script(codec.encode("ab"))

    async def make_room():
        reading = asyncio.ensure_future(read(codec, script, ask([1]), ask([2])))
        await asyncio.sleep(0.05)
        assert (len(script.requests), reading.done()) == (1, False)
        script.answers.append(codec.encode("cd"))
        return await reading

    pieces = asyncio.run(make_room())
    assert (joined(pieces), joined(pieces, 1)) == ("ab", "cd")
    with pytest.raises(DeadlineExceeded):
        run(codec, Script(codec.encode("ab")), ask([1]), ask([2]), wait_s=0.05)


def test_so_many_answers_run_at_a_time(codec, monkeypatch):
    monkeypatch.setattr(generation, "MAX_RUNNING", 3)
    script, begun = Script(*[codec.encode("a")] * 8), []
    monkeypatch.setattr(script, "_say", lambda hooks, *_: begun.append(hooks))

    async def start():
        with Generation(script, codec, CallContext()) as one:
            for i in range(4):
                request = ask([i])
                request.samplings = [Sampling()] * 2
                one.begin(request)
            reading = asyncio.ensure_future(one.read())
            await asyncio.sleep(0)
            assert len(script.requests) == 1
            begun[0].on_finish(0, "stop", 1)
            await reading
            begun[0].on_finish(1, "stop", 1)
            await one.read()
            reading = asyncio.ensure_future(one.read())
            await asyncio.sleep(0)
            reading.cancel()

    asyncio.run(start())
    assert len(script.requests) == 2


def test_leaving_early_drops_all_requests(codec):
    script = Script(codec.encode("ab"), codec.encode("cd"))
    assert len(run(codec, script, ask([1]), ask([1]), most=1)) == 1
    assert script.aborted == script.requests


def test_pieces_of_a_loop_that_is_closed_are_dropped(codec):
    async def begin(script):
        Generation(script, codec, CallContext()).begin(ask([1]))
        return script.requests[0].hooks

    hooks = asyncio.run(begin(Script(codec.encode("a"))))
    assert hooks.on_token(0, ScoredToken(1)) is False


TEXT = st.text("ab\n", max_size=20)


@given(st.lists(TEXT, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4))
@example(["aa", "ab"], ["aab"])
@example(["ab", "a", "b"], ["abab", "b\n"])
@example(["ab", "b"], ["abb", "b"])
def test_what_is_shown_is_the_text_before_the_first_stop_that_is_complete(pieces, stops):
    watch, come, known = StopStringFilter(stops), "", None
    shown = ""
    for piece in pieces:
        come += piece
        met = [come.find(stop) for stop in stops if stop in come]
        known = come[: min(met)] if met and known is None else known
        shown += watch.feed(piece)
        assert not any(stop in shown for stop in stops)
    assert shown + watch.end() == (come if known is None else known)
    assert (watch.hit is not None) == (known is not None)


def test_only_what_may_begin_a_stop_is_held_back():
    watch = StopStringFilter(["END"])
    assert [watch.feed("one E"), watch.feed("N"), watch.feed("Q E"), watch.end()] == ["one ", "", "ENQ ", "E"]
