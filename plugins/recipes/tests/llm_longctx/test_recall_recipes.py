"""The recall task is what it says; its recipe learns something in seconds, measures streams, and repeats itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_recipes.llm_longctx import recall
from fovea_recipes.llm_longctx.landmark_recall import LandmarkRecallRecipe, with_landmarks
from fovea_recipes.training.recipe import Schedule, recipe_named
from fovea_recipes.training.trainer import fit

SHORT = Schedule(steps=6, batch=8, rate=3e-3, floor=3e-4, validate_every=3)


@given(seed=st.integers(0, 2**20), body=st.sampled_from([8, 12, 52, 100]))
def test_each_question_has_its_answer_in_the_body(seed, body):
    drawn = recall.draw(np.random.default_rng(seed), 5, body)
    assert drawn.ids.shape == (5, body + 12)
    for row, written in zip(drawn.ids.tolist(), drawn.written.tolist(), strict=True):
        for answer, at in zip(drawn.answers.tolist(), written, strict=True):
            assert (row[answer - 2], at % 2, row[at : at + 2]) == (recall.MARK, 0, row[answer - 1 : answer + 1])
        keys = [row[a - 1] for a in drawn.answers.tolist()]
        assert len(set(keys)) == 4
        assert all(recall.FILLERS <= key < recall.FILLERS + recall.KEYS for key in keys)
        assert len([token for token in row[:body] if token < recall.FILLERS]) == body - 8


@pytest.mark.parametrize("form", ["landmark", "plain"])
def test_recipe_is_found_trains_and_repeats_itself(tmp_path, form):
    made = recipe_named("landmark-recall")(schedule=SHORT, form=form, answers=16)
    first, second = (fit(made, tmp_path / name) for name in ("a", "b"))
    assert first.data == second.data
    for one, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(0)
    with torch.no_grad():
        batch = next(made.batches(0, np.random.default_rng(0)))
        assert made.loss(first.network, batch) < made.loss(made.network(), batch) - 0.1
        found = made._whole(first.network, 20, 1)
    assert 0 <= found <= 1


def test_streams_are_measured_as_they_are_served():
    made = LandmarkRecallRecipe(answers=16)
    torch.manual_seed(0)
    net = made.network().eval()
    whole = made._whole(net, 52, 2 * 10**9)
    streamed, cited = made._streamed(net, 52, 99)
    assert streamed == whole  # nothing is left out, so nothing differs
    assert cited == 1.0
    assert made._streamed(net, 116, 1)[1] < 1.0


def test_answer_behind_a_landmark_is_told_by_the_token_before_it():
    made = LandmarkRecallRecipe()
    torch.manual_seed(0)
    net = made.network().eval()
    drawn = recall.draw(np.random.default_rng(3), 2, 52)
    ids = with_landmarks(drawn.ids, 8)
    with torch.no_grad():
        found = made._answers(net, drawn.ids, drawn.answers)
        whole = net(ids)
    assert torch.equal(found, whole[:, (ids[0] != recall.LANDMARK).nonzero().flatten()[drawn.answers - 1]])


@pytest.mark.parametrize("layout", ["mac", "mag", "mal", "lmm", "attention"])
def test_titans_recipes_are_found_train_and_measure(tmp_path, layout):
    kind = recipe_named(f"titans-{layout}-recall")
    longer = SHORT.model_copy(update={"steps": 30, "validate_every": 15})
    made = kind(schedule=longer, width=16, layers=1, heads=2, segment=8, refresh=4, longest=20, answers=16)
    fitted = fit(made, tmp_path)
    torch.manual_seed(made.seed)
    start = made.network()
    fresh = start.state_dict()
    still = [key for key, value in fitted.network.state_dict().items() if torch.equal(value, fresh[key])]
    assert still == []  # the gradient reaches everything, the memory's gates included
    with torch.no_grad():
        batch = next(made.batches(0, np.random.default_rng(0)))
        assert made.loss(fitted.network, batch) < made.loss(start, batch)
    assert 0 <= made._recall(fitted.network, 20, 5) <= 1
