"""OAT on searches of people: fixations become cells, the policy of places is the likeliest, and all is measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from fovea.errors import NotFound
from fovea_recipes.detection.collages import SpatialPolicy, fit_policy, read_collages
from fovea_recipes.detection.oat_gaze import OatGaze
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit

GRID = (2, 3)


def searches(folder: Path, count: int = 6, people: int = 4) -> Path:
    """Collages of 300 by 200 pixels on which everybody goes from the middle to the target, by a way of their own."""
    rng, held = np.random.default_rng(0), {}
    for index in range(count):
        row, column = divmod(index % 6, 3)
        x, y = 100 * column, 100 * row
        box = {"xmin": x + 10, "xmax": x + 90, "ymin": y + 10, "ymax": y + 90}
        paths = {
            str(person): [*rng.uniform(0, (300, 200), (rng.integers(1, 4), 2)).tolist(), [x + 50, y + 50]]
            for person in range(people)
        }
        held[f"{index}.jpg"] = {"fixations": paths, "ground_truth": [box], "size": {"width": 300, "height": 200}}
    (folder / "covers.json").write_text(json.dumps(held))
    return folder


def test_fixations_become_cells_and_long_paths_are_cut(tmp_path):
    found = read_collages(searches(tmp_path), GRID, longest=2)
    assert [each.target for each in found] == [0, 1, 2, 3, 4, 5]
    assert all(len(path) <= 2 for each in found for path in each.paths)
    whole = read_collages(tmp_path, GRID, longest=9)
    assert all(path[-1] == each.target for each in whole for path in each.paths)
    with pytest.raises(NotFound, match="no searches"):
        read_collages(tmp_path / "elsewhere", GRID, 2)


def test_the_fitted_policy_is_the_likeliest(tmp_path):
    known = read_collages(searches(tmp_path), GRID, longest=9)
    policy = fit_policy(known, GRID)

    def cost(weights: np.ndarray) -> float:
        made, total = SpatialPolicy(GRID, weights), 0.0
        for each in known:
            for path in each.paths:
                for step, cell in enumerate([*path, 6]):
                    logits = made.logits(np.array([path[:step]], np.int64), np.array([each.target]))
                    total -= log_softmax(logits[0])[cell]
        return total

    best = cost(policy.weights)
    for index in range(5):
        for move in (-0.2, 0.2):
            assert cost(policy.weights + move * np.eye(7)[index]) > best


def test_a_short_fit_is_measured_beside_people_and_places(tmp_path):
    made = OatGaze(
        data=searches(tmp_path),
        grid=GRID,
        longest=6,
        held_out=2,
        choose=1,
        schedule=Schedule(steps=2, batch=4, rate=1e-3, validate_every=2),
    )
    measured = made.measure(fit(made, tmp_path / "run").network)
    parts = {"nats", "sequence_score", "behaviour_delta"}
    assert {f"{part}{end}" for part in parts for end in ("", "_spatial")} < measured.keys()
    assert {"sequence_score_human", "behaviour_delta_human"} < measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    low, high = made.intervals()["nats_gain"]
    assert low <= measured["nats_gain"] <= high
    assert "2 held out" in made.facts()["data"]
