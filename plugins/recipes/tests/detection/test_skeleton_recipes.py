"""BMN on recordings of skeletons: files as the data set has them are read, trained on and measured with intervals."""

from pathlib import Path

import numpy as np
import pytest

from fovea.errors import NotFound
from fovea_recipes.detection.bmn_skeletons import BmnCsaSkeletons, BmnSkeletons
from fovea_recipes.detection.skeletons import CELL, recordings
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit

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


def test_recordings_are_read_with_their_actions(tmp_path):
    found, names = recordings(record(tmp_path))
    assert names == ("sitDown", "walk")
    assert [each.person for each in found] == ["s01", "s02", "s03"]
    np.testing.assert_allclose(found[0].spans, [[4, 14], [22, 32]], atol=0.01)
    assert found[0].kinds.tolist() == [1, 0]


def test_a_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(NotFound, match="no joints_"):
        recordings(tmp_path)


@pytest.mark.parametrize("kind", [BmnSkeletons, BmnCsaSkeletons])
def test_a_short_fit_is_measured_with_intervals(kind, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    made = kind(
        data=record(folder),
        held_out=("s03",),
        length=16,
        train=8,
        hidden=(8, 8, 8),
        schedule=Schedule(steps=2, batch=2, rate=1e-3, validate_every=2),
    )
    measured = made.measure(fit(made, tmp_path / "run").network)
    assert set(made.intervals()) == set(measured)
    for name, (low, high) in made.intervals().items():
        assert 0 <= low <= high <= 1, name
    assert "held-out windows of s03" in made.facts()["data"]
