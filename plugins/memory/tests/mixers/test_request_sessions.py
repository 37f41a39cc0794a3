"""Sessions take turns like decoders' answers: fair, cancellable, bounded, and each the same as alone."""

import pytest
import torch

from fovea_memory.session_backend import SessionBackend
from plugins.memory.tests.small_mixers import MIXERS, VOCAB
from services.llm_longctx.engine import GenerationRequest, Sampling, Scheduler
from services.llm_longctx.tests.conftest import Ear, most_running
from services.llm_longctx.tests.hooks import Listeners, drain


@pytest.fixture(params=MIXERS)
def opens(request):
    make, open_session = MIXERS[request.param]
    torch.manual_seed(0)
    net = make()
    return lambda ids: open_session(net, len(ids))


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


def test_answers_in_a_crowd_are_those_given_alone(opens):
    asked = [_ask(opens, _ids(5 + 9 * i, i), n=1 + i % 2) for i in range(5)]
    drain(_scheduler(prefill_tokens=8, max_batch=3), *(order for order, _ in asked))
    for order, ears in asked:
        again, others = _ask(opens, order.prompt_ids, n=len(ears))
        drain(_scheduler(), again)
        assert [ear.ids for ear in ears] == [ear.ids for ear in others]
        assert {end for ear in ears for end in ear.ends} == {("length", 8)}


def test_sessions_that_would_not_fit_beside_the_others_wait(opens):
    scheduler = _scheduler(max_bytes=1000)
    asked = [_ask(opens, _ids(4, i), new=3, max_bytes=400) for i in range(5)]
    for order, _ in asked:
        scheduler.add_request(order)
    assert most_running(scheduler) == 2
    assert all(ear.ends == [("length", 3)] for _, (ear,) in asked)


def test_forks_of_a_prompt_do_not_disturb_each_other(opens):
    stream, alone = opens(_ids(20)), opens(_ids(20))
    for begin in range(0, 20, 4):
        for one in (stream, alone):
            one.feed(_ids(20)[begin : begin + 4])
    stream.fork().feed([1, 2, 3])
    assert torch.equal(stream.feed([5]), alone.feed([5]))
