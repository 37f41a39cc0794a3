"""After a fit: a threshold that lets new pictures of the same kind pass, and warns of others."""

import numpy as np
from PIL import Image

from fovea_recipes.training.calibrate import fit_novelty_detector, reliability_facts, sample_pictures
from fovea_recipes.training.data.ood_images import make_ood_image, scramble
from fovea_recipes.training.novelty import auroc, cross_distances, fit_gaussian
from plugins.recipes.tests.training.test_novelty_and_calibration import kind
from shared.vision.novelty import InDistributionModel


def test_new_pictures_of_the_kind_pass_and_others_are_warned_of():
    rng = np.random.default_rng(0)
    found = fit_novelty_detector(
        kind(rng, 200), np.arange(200) // 2, kind(rng, 100), {"walls": kind(rng, 50, offset=2.0)}
    )
    assert found.metrics["false_warnings"] <= 0.06
    assert found.metrics["auroc_walls"] > 0.99
    assert found.metrics["warned_walls"] > 0.9
    again = InDistributionModel.read(found.arrays)
    assert again is not None
    assert (again.distance(kind(rng, 100)) > found.constants["novelty"]).mean() < 0.06


def test_half_of_a_foreign_kind_is_learnt_and_the_other_half_measured_beside_what_is_found_unlearnt():
    rng = np.random.default_rng(0)
    known, held = (rng.normal(size=(count, 30)).astype(np.float32) for count in (400, 200))
    walls = {"walls": (rng.normal(size=(120, 30)) + 1.2 * (np.arange(30) < 6)).astype(np.float32)}
    unlearnt = fit_novelty_detector(known, np.arange(400) // 2, held, walls).metrics
    learnt = fit_novelty_detector(known, np.arange(400) // 2, held, {}, walls).metrics
    assert learnt["auroc_walls"] > unlearnt["auroc_walls"] + 0.05
    assert learnt["warned_walls"] > unlearnt["warned_walls"] + 0.3
    assert abs(learnt["auroc_unlearnt_walls"] - unlearnt["auroc_walls"]) < 0.01
    assert learnt["false_warnings"] <= 0.06


def test_pictures_of_no_kind_are_drawn_and_mixed():
    rng = np.random.default_rng(0)
    drawn = [make_ood_image(rng) for _ in range(30)]
    assert {each.shape for each in drawn} == {(192, 256, 3)}
    assert np.std([each.mean() for each in drawn]) > 20
    stripes = np.repeat(np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 50, 0), 3, 2)
    mixed = [scramble(stripes, rng) for _ in range(20)]
    assert all(each.shape[2] == 3 and each.dtype == np.uint8 for each in mixed)
    assert len({each.shape for each in mixed}) > 1


def test_a_distance_across_folds_is_larger_than_one_to_what_was_fitted():
    few = kind(np.random.default_rng(0), 30)
    assert np.median(cross_distances(few, np.arange(30))) > np.median(fit_gaussian(few).distance(few))
    assert len(cross_distances(few[:2], np.zeros(2, np.int64))) == 2


def test_auroc_is_the_chance_that_the_other_is_farther():
    assert auroc([1, 2, 3], [4, 5]) == 1
    assert auroc([1, 2], [1, 2]) == 0.5
    assert auroc([3], [1, 2]) == 0


def test_reliability_compares_before_and_after():
    rng = np.random.default_rng(0)
    true = rng.random(4000)
    found = reliability_facts(true**3, true, rng.random(4000) < true)
    assert found.metrics["calibration_error"] < 0.03
    assert found.metrics["calibration_error_raw"] > 0.15
    assert sum(found.notes["reliability"]["counts"]) == 4000


def test_masks_are_no_pictures_of_another_kind(tmp_path):
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        for index in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{index}.png")
    found = sample_pictures(tmp_path, 3)
    assert len(found) == 3
    assert {path.parent.name for path in found} == {"images"}


def test_a_mask_beside_its_photograph_is_no_picture_of_another_kind(tmp_path):
    for index in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.jpg")
        Image.new("P", (8, 8)).save(tmp_path / f"{index}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "alone.png")
    found = sample_pictures(tmp_path, 99)
    assert [path.name for path in found] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "alone.png"]
