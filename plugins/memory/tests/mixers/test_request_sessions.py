"""Sessions take turns like decoders' answers: fair, cancellable, bounded, and each the same as alone."""

import time

import pytest
import torch

from fovea.errors import Cancelled, DeadlineExceeded
from fovea_memory.adapters.landmark_session import LandmarkRequestSession
from fovea_memory.adapters.session import StatelessRequestSession
from fovea_memory.adapters.titans import TitansRequestSession
from fovea_memory.mixers.deconstructed.networks import DeconstructedLM
from fovea_memory.mixers.landmark.networks import LandmarkGPT
from fovea_memory.mixers.routing.networks import RoutingLM
from fovea_memory.mixers.titans.networks import titans_mac
from fovea_memory.session_backend import SessionBackend
from services.llm_longctx.engine import GenerationRequest, Sampling, Scheduler
from services.llm_longctx.tests.conftest import Ear, most_running
from services.llm_longctx.tests.hooks import Listeners
from shared.registry import CallContext

VOCAB = 42


def _landmark():
    net = LandmarkGPT(VOCAB, 16, 2, 2, 4, 41, 64)
    return lambda ids: LandmarkRequestSession(net.session(1, blocks=2), 0, len(ids), [41])


def _titans():
    net = titans_mac(VOCAB, 16, 2, 2, segment=8)
    return lambda _: TitansRequestSession("m", net.session(1), [41], 256)


def _routing():
    net = RoutingLM(VOCAB, 16, 2, 2, 8, 1, 8, 8, 128)
    return lambda _: StatelessRequestSession(net.session(1), 256)


def _hybrid():
    net = DeconstructedLM(VOCAB, 16, 2, 2, "approximate", "hybrid", 128)
    return lambda _: StatelessRequestSession(net.session(1), 256)


@pytest.fixture(params=[_landmark, _titans, _routing, _hybrid], ids=["landmark", "titans", "routing", "hybrid"])
def opens(request):
    torch.manual_seed(0)
    return request.param()


def _ids(length, seed=0):
    return torch.randint(41, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class Source:
    """Opens sessions and forgets them."""

    def __init__(self, opens, max_bytes):
        self.open, self.max_bytes = opens, max_bytes

    def on_finish(self, session, last):
        """Nobody goes on from it."""


def _ask(opens, ids, n=1, new=8, max_bytes=0, **facts):
    ears = [Ear() for _ in range(n)]
    samplings, source = [Sampling(temperature=1.0, seed=i) for i in range(n)], Source(lambda: opens(ids), max_bytes)
    return GenerationRequest(ids, samplings, new, source=source, hooks=Listeners(*ears), **facts), ears


def _scheduler(prefill_tokens=64, **limits):
    return Scheduler(SessionBackend(VOCAB, **limits), prefill_tokens=prefill_tokens)


def _run(scheduler, *orders):
    for order in orders:
        scheduler.add_request(order)
    while scheduler.in_flight:
        scheduler.step()


def test_answers_in_a_crowd_are_those_given_alone(opens):
    asked = [_ask(opens, _ids(5 + 9 * i, i), n=1 + i % 2) for i in range(5)]
    _run(_scheduler(prefill_tokens=8, max_batch=3), *(order for order, _ in asked))
    for order, ears in asked:
        again, others = _ask(opens, order.prompt_ids, n=len(ears))
        _run(_scheduler(), again)
        assert [ear.ids for ear in ears] == [ear.ids for ear in others]
        assert {end for ear in ears for end in ear.ends} == {("length", 8)}


def test_cancelled_and_late_requests_stop_within_a_step(opens):
    scheduler, run = _scheduler(), CallContext()
    gone, (ear,) = _ask(opens, _ids(6), new=1000, run=run)
    late, (other,) = _ask(opens, _ids(6), new=1000, run=CallContext(deadline=time.monotonic() - 1))
    scheduler.add_request(gone)
    scheduler.step()
    scheduler.add_request(late)
    run.cancel()
    scheduler.step()
    assert isinstance(ear.ends[0][0], Cancelled)
    assert isinstance(other.ends[0][0], DeadlineExceeded)
    assert scheduler.in_flight == 0


def test_sessions_that_would_not_fit_beside_the_others_wait(opens):
    scheduler = _scheduler(max_bytes=1000)
    asked = [_ask(opens, _ids(4, i), new=3, max_bytes=400) for i in range(5)]
    for order, _ in asked:
        scheduler.add_request(order)
    assert most_running(scheduler) == 2
    assert all(ear.ends == [("length", 3)] for _, (ear,) in asked)


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
    order, (ear,) = _ask(opens, _ids(20), new=1, top_logprobs=0, score_prompt=True)
    _run(_scheduler(prefill_tokens=4), order)
    assert [token.id for token in ear.prompted] == order.prompt_ids[1:]
