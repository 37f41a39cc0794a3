"""From tokens to text: pieces of an answer of a scripted engine, stop texts; metrics and spans of answers."""

import asyncio
import gc
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from fovea.errors import Cancelled, DeadlineExceeded, QueueFull
from services.llm_longctx import generation_metrics
from services.llm_longctx.engine import Engine, GenerationRequest, Sampling, ScoredToken
from services.llm_longctx.engine.offline.completion import Request
from services.llm_longctx.serving import generation
from services.llm_longctx.serving.answer_text import TextOptions
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.stop_strings import StopStringFilter
from services.llm_longctx.tests.conftest import HELLO, MODEL, say
from shared import telemetry
from shared.registry import CallContext
from shared.tests.recorded_spans import is_child, recorded_spans  # noqa: F401  # a fixture
from tests.harness.waiting import wait_until as until


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


def test_an_error_is_raised_where_the_pieces_are_read_and_who_leaves_drops_all_requests(codec):
    script = Script(codec.encode("ab"), end=Cancelled("gone"))
    with pytest.raises(Cancelled):
        run(codec, script, ask([1]))
    assert script.aborted == script.requests
    script = Script(codec.encode("ab"), codec.encode("cd"))
    assert len(run(codec, script, ask([1]), ask([1]), most=1)) == 1
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


def test_pieces_of_a_loop_that_is_closed_are_dropped(codec):
    async def begin(script):
        Generation(script, codec, CallContext()).begin(ask([1]))
        return script.requests[0].hooks

    assert asyncio.run(begin(Script(codec.encode("a")))).on_token(0, ScoredToken(1)) is False


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


def sample(name, **labels):
    return REGISTRY.get_sample_value(f"fovea_{name}", labels) or 0.0


def sample_all(method):
    of_method, of_model = {"model": MODEL, "method": method}, {"model": MODEL}
    return {
        "first": sample("time_to_first_token_seconds_count", **of_method),
        "per_token": sample("time_per_output_token_seconds_count", **of_method),
        "prompt": sample("prompt_tokens_total", **of_method),
        "written": sample("generation_tokens_total", **of_method),
        "queries": sample("prefix_cache_queries_total", **of_model),
        "hits": sample("prefix_cache_hits_total", **of_model),
        "ratio": sample("kv_ratio_sum", **of_method),
        "waits": sample("request_queue_time_seconds_count", service="llm-longctx", model=MODEL),
        "steps": sample("batch_size_count", service="llm-longctx", model=MODEL),
    }


def test_counts_are_those_of_the_answers_usage(client):
    before = sample_all("streamingllm")
    answers = [say(client, extra_body={"longctx": {"method": "streamingllm"}}).usage for _ in range(2)]
    found = {name: value - before[name] for name, value in sample_all("streamingllm").items()}
    assert found["prompt"] == found["queries"] == sum(one.prompt_tokens for one in answers)
    assert found["hits"] == sum(one.longctx["cached_tokens"] for one in answers)
    assert found["written"] == sum(one.completion_tokens for one in answers) == 2 * 16
    assert (found["first"], found["per_token"], found["waits"]) == (2, 2, 2)
    assert 0 < found["ratio"] <= 2
    assert found["steps"] >= 2 * 15 - 1


def test_pages_and_answers_in_the_engine_are_asked_at_each_scrape(client, server):
    adapter = server.app.state.host.servable(MODEL).adapter
    generation_metrics.watch_scheduler(MODEL, adapter.scheduler)  # another test's app may serve a model of this name
    used, free = sample("kv_pages_used", model=MODEL), sample("kv_pages_free", model=MODEL)
    assert used + free == adapter.engine.pool.capacity
    assert (sample("requests_running", model=MODEL), sample("requests_waiting", model=MODEL)) == (0, 0)

    def read_while_it_answers() -> bool:
        """Whether the answer is counted; a small model may have ended it before it is read."""
        with client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=100, stream=True) as stream:
            next(iter(stream))
            return sample("requests_running", model=MODEL) == 1

    until(read_while_it_answers)


def test_a_model_that_was_unloaded_is_not_kept_by_its_gauges(decoder):
    engine = Engine(decoder)
    generation_metrics.watch_pages("gone", engine.pool)
    assert sample("kv_pages_free", model="gone") > 0
    del engine
    gc.collect()
    assert sample("kv_pages_free", model="gone") == 0


def test_a_preempted_answer_has_a_span_of_each_of_its_runs(decoder, recorded_spans):  # noqa: F811
    engine = Engine(decoder, kv_bytes=1, max_batch=4)
    requests = [Request(list(range(20 + n, 80 + n)), max_tokens=70) for n in range(3)]
    before = sample("preemptions_total", model="crowded")
    with telemetry.bind(model="crowded"), telemetry.span("crowd", parent="") as crowd:
        answers = engine.generate(requests)
    preempted = sum(one.usage.preempted for one in answers)
    assert preempted > 0, "the pool is too large for this test"
    assert sample("preemptions_total", model="crowded") - before == preempted
    parent = recorded_spans.one("crowd")
    runs = recorded_spans.named("decode")
    assert all(is_child(one, parent) for one in runs)
    assert crowd.traceparent.split("-")[1] == f"{parent.context.trace_id:032x}"
    assert len(recorded_spans.named("queue")) == 3 + preempted
    assert (sum(bool(one.attributes.get("fovea.preempted")) for one in runs), len(runs)) == (preempted, 3 + preempted)
