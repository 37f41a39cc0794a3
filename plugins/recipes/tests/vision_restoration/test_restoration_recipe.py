"""The recipe: two steps end in weights, and scores tell clean pairs from others."""

import numpy as np
import pytest
import torch

from fovea_recipes.training.publish import publish
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit
from fovea_recipes.vision_restoration.evaluation import restore_pairs, score_pairs, tensor
from fovea_recipes.vision_restoration.pairs import ReflectionPairs
from fovea_recipes.vision_restoration.rrformer_demo import RRFormerDemo

SHORT = {"scenes": 3, "valid": 4, "test": 8, "size": 64, "held": 64}


def pairs(plain: tuple[bool, ...] = (False, True)) -> ReflectionPairs:
    rng = np.random.default_rng(2)
    clean = rng.integers(0, 200, (len(plain), 32, 32, 3)).astype(np.uint8)
    mixed = np.where(np.array(plain)[:, None, None, None], clean, clean + 30).astype(np.uint8)
    return ReflectionPairs(mixed, clean, np.array(plain))


def test_a_fit_of_two_steps_is_measured_and_published(tmp_path):
    recipe = RRFormerDemo(**SHORT, schedule=Schedule(steps=2, batch=2, rate=1e-4, validate_every=1))
    fitted = fit(recipe, tmp_path / "fit")
    manifest = publish(recipe, fitted, tmp_path / "out")
    assert fitted.progress.step == 2
    assert manifest.data["digest"].startswith("train:")
    assert {"psnr", "ssim", "psnr_identity", "psnr_gain"} <= manifest.metrics.keys()
    assert manifest.bytes < 2 * 2**20


def test_scores_of_the_right_answer_are_perfect():
    held = pairs()
    scores = score_pairs(held.clean, held)
    assert (scores["psnr"], scores["psnr_clean"], scores["ssim"]) == (60, 60, pytest.approx(1))
    assert scores["psnr_identity"] == pytest.approx(20 * np.log10(255 / 30))
    assert (scores["pairs"], scores["clean_pairs"]) == (2, 1)


def test_answers_are_clipped_and_truncated():
    class Shifted(torch.nn.Linear):
        def forward(self, x):
            return x * 1.5 - 0.2

    held = pairs()
    wanted = ((tensor(held.mixed) * 1.5 - 0.2).clamp(0, 1) * 255).numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.array_equal(restore_pairs(Shifted(1, 1), held.mixed, batch=1), wanted)
