"""Sessions take turns like decoders' answers: fair, cancellable, bounded, the same as alone, and on any device."""

import copy
from types import SimpleNamespace

import pytest
import torch

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
from services.llm_longctx.tests.hooks import Listeners, drain
from tests.device.pretend_cuda import PretendCuda, to_cuda

VOCAB = 42


def _stateless(net, _length):
    return StatelessRequestSession(net.session(1), 256)


MIXERS = {
    "landmark": (lambda: LandmarkGPT(VOCAB, 16, 2, 2, 4, 41, 64),
                 lambda net, length: LandmarkRequestSession(net.session(1, blocks=2), 0, length, [41])),
    "titans": (lambda: titans_mac(VOCAB, 16, 2, 2, segment=8),
               lambda net, _: TitansRequestSession("m", net.session(1), [41], 256)),
    "routing": (lambda: RoutingLM(VOCAB, 16, 2, 2, 8, 1, 8, 8, 128), _stateless),
    "approximate": (lambda: DeconstructedLM(VOCAB, 16, 2, 2, "approximate", "hybrid", 128), _stateless),
    "nonapproximate": (lambda: DeconstructedLM(VOCAB, 16, 2, 2, "nonapproximate", "hybrid", 128), _stateless),
}  # fmt: skip
"""Small random mixers: each with its network, and how it opens the session of a prompt of some length."""


@pytest.fixture(params=MIXERS)
def opens(request):
    make, open_session = MIXERS[request.param]
    torch.manual_seed(0)
    net = make()
    return lambda ids: open_session(net, len(ids))


def _ids(length, seed=0):
    return torch.randint(41, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _ask(opens, ids, n=1, new=8, max_bytes=0, **facts):
    ears = [Ear() for _ in range(n)]
    samplings = [Sampling(temperature=1.0, seed=i) for i in range(n)]
    source = SimpleNamespace(open=lambda: opens(ids), max_bytes=max_bytes, on_finish=lambda *_: None)
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


PROMPT, STEPS = 40, 4
IDS = [(5 * i + i * i) % 41 for i in range(PROMPT + STEPS)]


def play(open_session, net) -> torch.Tensor:
    session, rows, read = open_session(net, PROMPT), [], 0
    with torch.inference_mode():
        while read < PROMPT:
            size = min(session.max_chunk, PROMPT - read)
            logits = session.feed(IDS[read : read + size])
            read += size
        rows.append(logits[-1])
        twin = session.fork()
        rows += [twin.feed([token])[-1] for token in IDS[PROMPT:]]
    assert session.nbytes > 0
    twin.close()
    session.close()
    return torch.stack(rows)


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_answer_as_on_a_cpu(name):
    make, open_session = MIXERS[name]
    torch.manual_seed(0)
    net = make().eval().requires_grad_(requires_grad=False)
    wanted, device = play(open_session, net), PretendCuda()
    with device.active():
        found = play(open_session, to_cuda(copy.deepcopy(net), device))
        assert found.device.type == "cuda"
        close = torch.allclose(found.cpu(), wanted, atol=1e-4)
    assert close


def _restore_landmark(net, ids, offload):
    first, second = (net.session(1, blocks=2, offload=offload) for _ in range(2))
    first.feed(ids[:, :PROMPT])
    second.restore(first.state(), PROMPT)
    return second.feed(ids[:, PROMPT:]).logits


def _restore_titans(net, ids, _offload):
    session = net.session(1)
    session.feed(ids[:, :PROMPT])
    return net.restore(session.export()).feed(ids[:, PROMPT:])


@pytest.mark.parametrize(
    ("name", "offload"), [("landmark", "none"), ("landmark", "cpu"), ("landmark", "disk"), ("titans", "none")]
)
def test_sessions_are_restored_and_keep_blocks_elsewhere(name, offload):
    restore = _restore_landmark if name == "landmark" else _restore_titans
    torch.manual_seed(0)
    net = MIXERS[name][0]().eval().requires_grad_(requires_grad=False)
    ids = torch.tensor([IDS])
    wanted, device = restore(net, ids, offload), PretendCuda()
    with device.active():
        found = restore(to_cuda(copy.deepcopy(net), device), ids.cuda(), offload)
        close = found.is_cuda and torch.allclose(found.cpu(), wanted, atol=1e-4)
    assert close
