"""Sessions take turns like decoders' answers: fair, cancellable, bounded, and each the same as alone."""

from __future__ import annotations

import time

import pytest
import torch

from services.llm_longctx.engine import Choice, Order, Sampling
from services.llm_longctx.engine.streams import StreamScheduler
from services.llm_longctx.mixers.deconstructed.networks import DeconstructedLM
from services.llm_longctx.mixers.landmark.networks import LandmarkGPT
from services.llm_longctx.mixers.routing.networks import RoutingLM
from services.llm_longctx.mixers.titans.networks import titans_mac
from services.llm_longctx.serving.adapters.landmark import LandmarkStream
from services.llm_longctx.serving.adapters.session import PlainStream
from services.llm_longctx.serving.adapters.titans import TitansStream
from services.llm_longctx.tests.test_engine import Ear
from shared.errors import Cancelled, DeadlineExceeded, Fault, TooLarge
from shared.registry import CallContext

VOCAB = 42


def _landmark():
    net = LandmarkGPT(VOCAB, 16, 2, 2, 4, 41, 64)
    return lambda ids: LandmarkStream(net.session(1, blocks=2), 0, len(ids), [41])


def _titans():
    net = titans_mac(VOCAB, 16, 2, 2, segment=8)
    return lambda _: TitansStream("m", net.session(1), [41], 256)


def _routing():
    net = RoutingLM(VOCAB, 16, 2, 2, 8, 1, 8, 8, 128)
    return lambda _: PlainStream(net.session(1), 256)


def _hybrid():
    net = DeconstructedLM(VOCAB, 16, 2, 2, "approximate", "hybrid", 128)
    return lambda _: PlainStream(net.session(1), 256)


@pytest.fixture(params=[_landmark, _titans, _routing, _hybrid], ids=["landmark", "titans", "routing", "hybrid"])
def opens(request):
    torch.manual_seed(0)
    return request.param()


def _ids(length, seed=0):
    return torch.randint(41, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _order(opens, ids, n=1, new=8, **facts):
    ears = [Ear() for _ in range(n)]
    choices = [Choice(Sampling(temperature=1.0, seed=i), ear) for i, ear in enumerate(ears)]
    return Order(ids, choices, new, opens=lambda: opens(ids), **facts), ears


def _run(scheduler, *orders):
    for order in orders:
        scheduler.submit(order)
    while scheduler.in_flight:
        scheduler.step()


def test_answers_in_a_crowd_are_those_given_alone(opens):
    asked = [_order(opens, _ids(5 + 9 * i, i), n=1 + i % 2) for i in range(5)]
    _run(StreamScheduler(VOCAB, prefill_tokens=8, max_batch=3), *(order for order, _ in asked))
    for order, ears in asked:
        again, others = _order(opens, order.ids, n=len(ears))
        _run(StreamScheduler(VOCAB), again)
        assert [ear.ids for ear in ears] == [ear.ids for ear in others]
        assert {end for ear in ears for end in ear.ends} == {("length", 8)}


def test_long_prompt_delays_nobody_by_more_than_a_chunk(opens):
    scheduler = StreamScheduler(VOCAB, prefill_tokens=8)
    short, (ear,) = _order(opens, _ids(4), new=6)
    long, _ = _order(opens, _ids(100), new=1)
    scheduler.submit(short)
    scheduler.step()
    scheduler.submit(long)
    steps = 0
    while not ear.ends:
        scheduler.step()
        steps += 1
    assert steps <= 6
    scheduler.close()


def test_cancelled_and_late_requests_stop_within_a_step(opens):
    scheduler, run = StreamScheduler(VOCAB), CallContext()
    gone, (ear,) = _order(opens, _ids(6), new=1000, run=run)
    late, (other,) = _order(opens, _ids(6), new=1000, run=CallContext(deadline=time.monotonic() - 1))
    scheduler.submit(gone)
    scheduler.step()
    scheduler.submit(late)
    run.cancel()
    scheduler.step()
    assert isinstance(ear.ends[0][0], Cancelled)
    assert isinstance(other.ends[0][0], DeadlineExceeded)
    assert (scheduler.in_flight, scheduler.held_bytes) == (0, 0)


def test_sessions_that_would_not_fit_beside_the_others_wait(opens):
    scheduler = StreamScheduler(VOCAB, most_bytes=1000)
    asked = [_order(opens, _ids(4, i), new=3, most_bytes=400) for i in range(5)]
    for order, _ in asked:
        scheduler.submit(order)
    most = 0
    while scheduler.in_flight:
        scheduler.step()
        most = max(most, len(scheduler._running))
    assert most == 2
    assert all(ear.ends == [("length", 3)] for _, (ear,) in asked)
    with pytest.raises(TooLarge, match="1,001 bytes; this model has 1,000"):
        scheduler.check(1001)


def test_session_that_breaks_takes_no_other_along(opens):
    class Broken:
        read, room, nbytes, dense_nbytes, density = 0, 8, 0, 0, 1.0

        def feed(self, tokens):
            self.read += len(tokens)
            if self.read > 5:
                raise RuntimeError("no more")
            return torch.zeros(len(tokens), VOCAB)

        def close(self):
            pass

    good, (ear,) = _order(opens, _ids(4), new=6)
    bad, (other,) = _order(lambda _: Broken(), _ids(4), new=6)
    scheduler = StreamScheduler(VOCAB)
    _run(scheduler, bad, good)
    assert isinstance(other.ends[0][0], Fault)
    assert ear.ends == [("length", 6)]


def test_forks_of_a_prompt_do_not_disturb_each_other(opens):
    stream = opens(_ids(20))
    for begin in range(0, 20, 4):
        stream.feed(_ids(20)[begin : begin + 4])
    twin = stream.fork()
    twin.feed([1, 2, 3])
    alone = opens(_ids(20))
    for begin in range(0, 20, 4):
        alone.feed(_ids(20)[begin : begin + 4])
    assert torch.equal(stream.feed([5]), alone.feed([5]))


def test_prompt_is_scored_like_the_logits_say(opens):
    order, (ear,) = _order(opens, _ids(20), new=1, top=0, score_prompt=True)
    _run(StreamScheduler(VOCAB, prefill_tokens=4), order)
    assert [token.id for token in ear.prompted] == order.ids[1:]
