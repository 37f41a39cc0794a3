"""Trained mixers on a pretended device: a prompt and four steps of each, as on a CPU."""

import copy

import pytest
import torch

from plugins.memory.tests.small_mixers import MIXERS
from tests.device.pretend_cuda import PretendCuda, to_cuda

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
