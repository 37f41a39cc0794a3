"""The tiny model and its recipe: it copies, some of its heads are induction heads, and a step follows from its seed."""

import numpy as np
import pytest
import torch

from fovea_recipes.interpretability.tiny_induction import LETTERS, TinyInduction
from services.interpretability.attention.head_scores import head_patterns


def test_known_tokens_follow_from_what_came_before():
    recipe = TinyInduction()
    last = recipe.schedule.steps - 1
    for step in (0, last // 3, last):
        (batch,) = recipe.batches(step, np.random.default_rng(3))
        assert batch["ids"].shape == (recipe.schedule.batch, recipe.tokens)
        for ids, known in zip(batch["ids"].tolist(), batch["known"].tolist(), strict=True):
            spans = stretches(known)
            for begin, end in spans:
                # Where strings take turns, the token before stands before it there, too: the string's first.
                wanted = ids[begin - (len(spans) > 1) : end]
                assert any(ids[i : i + len(wanted)] == wanted for i in range(begin - 1)), "it came before"


def stretches(known):
    edges = np.flatnonzero(np.diff([False, *known, False]))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def test_loss_is_that_of_known_tokens_and_falls_when_they_are_learned():
    recipe = TinyInduction(width=16, layers=1, heads=2, kv_heads=1)
    torch.manual_seed(0)
    network = recipe.network().train()
    (batch,) = recipe.batches(0, np.random.default_rng(0))
    optimizer = recipe.optimizer(network)
    losses = []
    for _ in range(12):
        loss = recipe.loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(256), abs=0.3)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(("between", "repeats", "known", "share"), [(0, 5, 29, 0.8), (150, 2, 7, 0.6)])
def test_served_model_copies_strings_that_it_never_saw_across_a_gap_too(tiny, between, repeats, known, share):
    rng, right = np.random.default_rng(99), []
    for _ in range(20):
        asked, gap = ("".join(rng.choice(list(LETTERS), size)) for size in (10, between))
        ids = tiny.encode(gap.join([asked] * repeats))
        best = tiny.model(tiny.tensor([ids]))[0].argmax(-1).tolist()
        right += [best[i] == ids[i + 1] for i in range(len(ids) - 1 - known, len(ids) - 1)]
    assert np.mean(right) > share


def test_served_model_has_induction_heads(tiny):
    assert head_patterns(tiny.model, tiny.encode("kqzwxmhjvb"))["induction"].max() > 0.4
