"""The recipe: two steps end in weights, and scores tell clean pairs from others."""

import numpy as np
import pytest
import torch

from fovea_recipes.vision_restoration.evaluation import restore_pairs, score_pairs, tensor
from fovea_recipes.vision_restoration.pairs import ReflectionPairs


def pairs(plain: tuple[bool, ...] = (False, True)) -> ReflectionPairs:
    clean = np.random.default_rng(2).integers(0, 200, (len(plain), 32, 32, 3)).astype(np.uint8)
    mixed = np.where(np.array(plain)[:, None, None, None], clean, clean + 30).astype(np.uint8)
    return ReflectionPairs(mixed, clean, np.array(plain))


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
