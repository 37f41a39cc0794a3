"""The synthetic shelves and their searchers, and the recipe of OAT."""

import numpy as np
import pytest

from fovea_recipes.detection.oat.data import LONGEST, trials
from fovea_recipes.detection.oat.recipe import OatDemo
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit


def test_the_target_is_unique_and_half_of_the_others_look_like_it():
    drawn = trials(np.random.default_rng(0), 300)
    sought = drawn.items[np.arange(300), drawn.targets]
    assert ((drawn.items == sought[:, None]).sum(1) == 1).all()
    alike = (drawn.items % 8 == sought[:, None] % 8) ^ (drawn.items // 8 == sought[:, None] // 8)
    others = 300 * 26
    by_chance = 0.5 * (1 / 8 + 1 / 12)
    assert alike.sum() / others == pytest.approx(0.5 + by_chance, abs=0.05)


def test_paths_stop_at_the_target_or_are_cut():
    drawn = trials(np.random.default_rng(1), 500)
    paths = [drawn.path(index) for index in range(500)]
    assert all(1 <= len(path) <= LONGEST for path in paths)
    ended = [path[-1] == target for path, target in zip(paths, drawn.targets, strict=True)]
    assert all(ended[index] for index in range(500) if len(paths[index]) < LONGEST)
    assert 0.7 < np.mean(ended) < 0.98
    assert (drawn.paths == 27).sum(1).tolist() == [1] * 500


def test_a_short_fit_learns_and_is_measured(tmp_path):
    recipe = OatDemo(schedule=Schedule(steps=6, batch=4, rate=1e-3, validate_every=3), valid=5, test=8)
    fitted = fit(recipe, tmp_path)
    assert [step for step, _ in fitted.progress.scores] == [3, 6]
    measured = recipe.measure(fitted.network)
    assert measured["sequence_score_policy"] > 0
    assert 0 <= measured["found"] <= 1
    assert measured["length"] <= LONGEST


def test_batches_hold_what_the_loss_needs_on_any_grid():
    recipe = OatDemo(schedule=Schedule(steps=1, batch=4, rate=1e-3))
    net = recipe.network()
    for step in range(3):
        batch = next(recipe.batches(step, np.random.default_rng(step)))
        places = batch["items"].shape[1]
        assert batch["cells"].shape == (4, places, 2)
        assert batch["items"].max() < len(batch["pictures"])
        assert np.isfinite(recipe.loss(net, batch).item())
