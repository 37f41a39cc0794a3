"""Recipes of sequences: gaze, and actions in videos and in recordings of skeletons."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from fovea.errors import NotFound
from fovea_recipes.detection.bmn.data import LENGTH
from fovea_recipes.detection.bmn.recipe import BmnCsaDemo, BmnDemo
from fovea_recipes.detection.bmn_skeletons import BmnCsaSkeletons, BmnSkeletons
from fovea_recipes.detection.collages import SpatialPolicy, fit_policy, read_collages
from fovea_recipes.detection.oat.data import LONGEST, trials
from fovea_recipes.detection.oat_gaze import OatGaze
from fovea_recipes.detection.skeletons import CELL, recordings
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit
from tests.harness.hypothesis_profiles import in_depth

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


def test_fixations_become_cells_long_paths_are_cut_and_the_fitted_policy_is_the_likeliest(tmp_path):
    found = read_collages(searches(tmp_path), GRID, longest=2)
    assert [each.target for each in found] == [0, 1, 2, 3, 4, 5]
    assert all(len(path) <= 2 for each in found for path in each.paths)
    whole = read_collages(tmp_path, GRID, longest=9)
    assert all(path[-1] == each.target for each in whole for path in each.paths)
    with pytest.raises(NotFound, match="no searches"):
        read_collages(tmp_path / "elsewhere", GRID, 2)
    policy = fit_policy(whole, GRID)

    def cost(weights: np.ndarray) -> float:
        made, total = SpatialPolicy(GRID, weights), 0.0
        for each in whole:
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
        data=searches(tmp_path), grid=GRID, longest=6, held_out=2, choose=1,
        schedule=Schedule(steps=2, batch=4, rate=1e-3, validate_every=2),
    )  # fmt: skip
    measured = made.measure(fit(made, tmp_path / "run").network)
    parts = {"nats", "sequence_score", "behaviour_delta"}
    assert {f"{part}{end}" for part in parts for end in ("", "_spatial")} < measured.keys()
    assert {"sequence_score_human", "behaviour_delta_human"} < measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    low, high = made.intervals()["nats_gain"]
    assert low <= measured["nats_gain"] <= high
    assert "2 held out" in made.facts()["data"]
    assert str(tmp_path) not in made.model_dump_json()


def test_the_target_is_unique_half_of_the_others_look_alike_and_paths_stop_at_it():
    drawn = trials(np.random.default_rng(0), 300)
    sought = drawn.items[np.arange(300), drawn.targets]
    assert ((drawn.items == sought[:, None]).sum(1) == 1).all()
    alike = (drawn.items % 8 == sought[:, None] % 8) ^ (drawn.items // 8 == sought[:, None] // 8)
    assert alike.sum() / (300 * 26) == pytest.approx(0.5 + (0.5 * (1 / 8 + 1 / 12)), abs=0.05)
    drawn = trials(np.random.default_rng(1), 500)
    paths = [drawn.path(index) for index in range(500)]
    assert all(1 <= len(path) <= LONGEST for path in paths)
    ended = [path[-1] == target for path, target in zip(paths, drawn.targets, strict=True)]
    assert all(ended[index] for index in range(500) if len(paths[index]) < LONGEST)
    assert 0.7 < np.mean(ended) < 0.98
    assert (drawn.paths == 27).sum(1).tolist() == [1] * 500


TINY = {
    "train": 24, "valid": 4, "test": 6, "hidden": (8, 8, 8),
    "schedule": Schedule(steps=4, batch=4, rate=1e-3, validate_every=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", in_depth([BmnDemo, BmnCsaDemo], [BmnCsaDemo]))
def test_a_short_fit_learns_and_is_measured(kind, tmp_path):
    recipe = kind(**TINY)
    fitted = fit(recipe, tmp_path)
    assert np.isfinite(fitted.progress.loss)
    measured = recipe.measure(fitted.network)
    assert set(measured) == {"average_map", "map_50", "map_75", "ar_10", "ar_100"}
    assert all(0 <= value <= 1 for value in measured.values())
    assert measured["ar_100"] >= measured["ar_10"]


def test_an_oracle_that_knows_the_labels_reaches_nearly_everything(tmp_path):
    """Measures the measure: true overlaps as confidence, true boundaries as boundaries."""
    recipe = BmnDemo(**TINY)
    recipe.prepare(tmp_path)

    class Oracle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            from fovea_actions.segments.proposals import boundary_labels

            labels = [boundary_labels(spans, LENGTH) for spans in recipe.videos("test").segments]
            overlap, start, end = (torch.from_numpy(np.stack(part)).float() for part in zip(*labels, strict=True))
            return torch.stack((overlap, overlap), 1), start, end

    measured = recipe.measure(Oracle())
    assert measured["ar_10"] > 0.95
    assert measured["average_map"] > 0.7


ACTIONS = ("walk", "sitDown")
FRAMES = 40 * CELL


def record(folder: Path, persons: int = 3) -> Path:
    """Recordings in which a person lifts one joint or the other for a while; one action was not filmed."""
    rng, lines = np.random.default_rng(0), []
    for person in range(1, persons + 1):
        name = f"s{person:02}_e01"
        joints = np.tile(rng.normal(0, 0.3, (20, 3)), (FRAMES, 1, 1)) + rng.normal(0, 0.01, (FRAMES, 20, 3))
        lines.append(name)
        for index, action in enumerate(ACTIONS):
            first, last = (1 + (4 + 18 * index + more) * CELL for more in (0, 10))
            joints[first:last, 4 + index] += 0.5
            lines.append(f"{action}: {first} {last}")
        lines.append("carry: NaN NaN")
        rows = np.column_stack([np.arange(1, FRAMES + 1), joints.reshape(FRAMES, 60)])
        np.savetxt(folder / f"joints_{name}.txt", rows, fmt="%.4f")
    (folder / "actionLabel.txt").write_text("\n".join(lines))
    return folder


def test_recordings_are_read_and_a_folder_without_them_is_named(tmp_path):
    found, names = recordings(record(tmp_path))
    assert names == ("sitDown", "walk")
    assert [each.person for each in found] == ["s01", "s02", "s03"]
    np.testing.assert_allclose(found[0].spans, [[4, 14], [22, 32]], atol=0.01)
    assert found[0].kinds.tolist() == [1, 0]
    (tmp_path / "none").mkdir()
    with pytest.raises(NotFound, match="no joints_"):
        recordings(tmp_path / "none")


@pytest.mark.parametrize("kind", in_depth([BmnSkeletons, BmnCsaSkeletons], [BmnSkeletons]))
def test_a_short_fit_is_measured_with_intervals(kind, tmp_path):
    schedule = Schedule(steps=2, batch=2, rate=1e-3, validate_every=2)
    made = kind(data=record(tmp_path), held_out=("s03",), length=16, train=8, hidden=(8, 8, 8), schedule=schedule)
    assert set(made.measure(fit(made, tmp_path / "run").network)) == set(made.intervals())
    assert all(0 <= low <= high <= 1 for low, high in made.intervals().values())
    assert "held-out windows of s03" in made.facts()["data"]
    chosen_by, seen = ({window.tobytes() for window in made.videos(split).features} for split in ("valid", "train"))
    assert not chosen_by & seen
