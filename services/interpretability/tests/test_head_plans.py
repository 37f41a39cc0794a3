"""Scores and gates of heads against published numbers, and the plans that follow from them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from services.interpretability.experiments.head_plans import (
    duo_gate_loss,
    duo_gates,
    echo_induction,
    razor_plan,
    repeated,
)
from shared.lm.head_plan import grouped_max
from shared.lm.networks import llama

GOLDEN = np.load(Path(__file__).parent / "golden" / "head_plans.npz")
ANSWER = torch.arange(160) >= 128


def uniform(seed, n):
    """Numbers in [-1, 1) by splitmix64: the rule by which the golden model's weights are made."""
    z = (np.uint64(seed) << np.uint64(32)) + np.arange(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z += np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


@pytest.fixture(scope="module")
def net():
    model = llama(
        vocab=96, width=64, layers=3, heads=4, kv_heads=2, hidden=128, positions=4096, norm_eps=1e-5, head_dim=16
    ).double()
    weights = {}
    for key, old in model.state_dict().items():
        x = uniform((zlib.crc32(key.encode()) + 101) % 2**32, old.numel()).reshape(old.shape)
        if "norm" in key:
            x = 1 + 0.1 * x
        elif "embed" not in key:
            x = x * np.sqrt(3 / old.shape[1]) * (2.5 if "q_proj" in key or "k_proj" in key else 1)
        weights[key] = torch.from_numpy(x)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(requires_grad=False)


def test_echo_and_induction_are_the_published_scores(net):
    scores = echo_induction(net, GOLDEN["razor_repeat_ids"], 24)
    assert np.abs(scores.numpy() - GOLDEN["razor_scores_q"]).max() < 1e-7
    for kind in (0, 1):
        table = np.array(grouped_max(scores[:, kind].tolist(), 2))
        assert np.abs(table - GOLDEN["razor_scores_kv"][:, kind]).max() < 1e-7


def test_the_loss_of_gates_and_its_gradient_are_the_published_ones(net):
    gates = torch.from_numpy(GOLDEN["duo_train_gates"]).requires_grad_()
    loss = duo_gate_loss(net, GOLDEN["ids"][:160], ANSWER, gates, sink=8, recent=24)
    loss.total.backward()
    found = [float(x.detach()) for x in (loss.distill, loss.sparsity, loss.total)]
    assert np.abs(np.array(found) - GOLDEN["duo_train_losses"]).max() < 2e-5
    assert (gates.grad - torch.from_numpy(GOLDEN["duo_train_grad"])).abs().max() < 2e-5


def test_open_gates_cost_their_sparsity_only(net):
    loss = duo_gate_loss(net, GOLDEN["ids"][:60], torch.arange(40, 60), torch.ones(3, 2), sink=2, recent=4)
    assert float(loss.distill) < 1e-20
    assert float(loss.total) == pytest.approx(0.05)


def test_a_sequence_repeats_itself():
    ids = repeated(50, 7, 3, seed=1)
    assert torch.equal(ids[:7], ids[14:])
    assert len(ids) == 21


def test_razor_takes_at_least_one_head_by_each_score(net):
    plan = razor_plan(net, period=20, echo=0.001, induction=0.3)
    assert 1 <= sum(map(sum, plan.roles)) <= 3
    best = np.unravel_index(np.argmax(plan.scores["echo"]), (3, 2))
    assert plan.roles[best[0]][best[1]] == 1
    assert plan.made_by.spec["period"] == 20
    plan.check(net.config)


def test_trained_gates_become_a_plan_with_progress(net):
    seen = []
    data = [(torch.from_numpy(GOLDEN["ids"][:80]), torch.arange(60, 80))] * 3
    plan = duo_gates(net, data, steps=3, sink=2, recent=8, share=0.5, progress=seen.append)
    assert sum(map(sum, plan.roles)) == 3
    assert all(0 <= gate <= 1 for row in plan.scores["duo_gate"] for gate in row)
    assert len({gate for row in plan.scores["duo_gate"] for gate in row}) > 1
    assert seen[-1] == 1.0
