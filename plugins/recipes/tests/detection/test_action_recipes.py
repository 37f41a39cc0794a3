"""The synthetic videos, and the recipes of BMN: drawing, training and measuring."""

import numpy as np
import pytest
import torch

from fovea_recipes.detection.bmn.data import LENGTH, videos
from fovea_recipes.detection.bmn.recipe import BmnCsaDemo, BmnDemo
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit

TINY = {
    "train": 24,
    "valid": 4,
    "test": 6,
    "hidden": (8, 8, 8),
    "schedule": Schedule(steps=4, batch=4, rate=1e-3, validate_every=2),
}


def test_videos_repeat_and_splits_differ():
    assert videos("train", 5).digest == videos("train", 5).digest
    assert len({videos(split, 5).digest for split in ("train", "valid", "test")}) == 3
    assert videos("train", 5).digest != videos("train", 5, world=1).digest


def test_semantics_carry_the_class_and_have_no_mean():
    held = videos("train", 200)
    np.testing.assert_allclose(held.semantics.mean(2), 0, atol=1e-6)
    right = []
    for video, (spans, labels) in enumerate(zip(held.segments, held.labels, strict=True)):
        for (start, end), label in zip(spans, labels, strict=True):
            inside = held.scores[video, :, round(start * LENGTH) : round(end * LENGTH)].mean(1)
            right.append(inside.argmax() == label)
    assert np.mean(right) > 0.8


@pytest.mark.parametrize("recipe", [BmnDemo(**TINY), BmnCsaDemo(**TINY)], ids=["bmn", "bmn-csa"])
def test_a_short_fit_learns_and_is_measured(recipe, tmp_path):
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
            from services.detection.segments.proposals import boundary_labels

            labels = [boundary_labels(spans, LENGTH) for spans in recipe.videos("test").segments]
            overlap, start, end = (torch.from_numpy(np.stack(part)).float() for part in zip(*labels, strict=True))
            return torch.stack((overlap, overlap), 1), start, end

    measured = recipe.measure(Oracle())
    assert measured["ar_10"] > 0.95
    assert measured["average_map"] > 0.7
