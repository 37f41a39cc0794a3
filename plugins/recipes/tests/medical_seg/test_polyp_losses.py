"""Losses, metrics and one training step against the published ones; their edge cases, and crops."""

import math

import numpy as np
import pytest
import torch

from fovea_recipes.medical_seg.empty_crops import choose_peak, crops_without_polyp, drop_faint, share_clean
from fovea_recipes.medical_seg.losses import deep_supervision, dual_supervision, structure_loss
from fovea_recipes.medical_seg.metrics import dataset_scores, segmentation_scores
from plugins.recipes.tests.golden_files import read
from services.medical_seg.tests.conftest import GOLDEN
from shared.registry import network
from tests.golden import read_golden


def test_losses_gradients_and_statistics_equal_the_published_ones(fill, picture, mask):
    expected, truth = read_golden(GOLDEN / "pranet_1x3x256x320.arrays"), mask(1, 256, 320)
    with torch.no_grad():
        maps = fill(network("pranet"))(picture(1, 256, 320))
    for form, key in (("released", "structure_loss_official"), ("paper", "structure_loss_reduction_none")):
        losses = [structure_loss(found, truth, form).item() for found in maps]
        np.testing.assert_allclose(losses, expected[key], rtol=1e-5, atol=1e-5)
    net, expected = fill(network("pranet")).train(), read("pranet_trainstep_2x3x96x96.arrays")
    truth = mask(2, 96, 96)
    losses = [structure_loss(found, truth, "released") for found in net(picture(2, 96, 96))]
    torch.stack(losses).sum().backward()
    np.testing.assert_allclose([loss.item() for loss in losses], expected["losses_5432"], rtol=1e-4)
    parameters = dict(net.named_parameters())
    norms = [parameters[name].grad.norm().item() for name in read("pranet_trainstep_grad_names.json")]
    # Biases in front of another batch norm have gradient zero; what is left of it there is rounding.
    np.testing.assert_allclose(norms, expected["grad_l2"], rtol=1e-2, atol=1e-6)
    state = net.state_dict()
    for key in (key for key in expected if key.startswith("buf:")):
        np.testing.assert_allclose(state[key[4:]].numpy(), expected[key], rtol=1e-3, atol=1e-6)


def test_metrics_equal_the_toolbox_on_every_case():
    pairs, cases = read("polyp_metrics.arrays"), read("polyp_metrics.json")["cases"]
    assert len(cases) == 6
    for prediction, truth, expected in zip(pairs["pred_u8"], pairs["gt"], cases, strict=True):
        scores = segmentation_scores(prediction, truth)
        assert scores.keys() == expected.keys()
        for key, value in expected.items():
            assert scores[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


def disc(side: int, y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def test_deep_supervision_is_the_sum_over_maps_and_dual_wants_background_elsewhere():
    truth = torch.from_numpy(disc(64, 30, 34, 12)).float()[None, None]
    maps = [torch.full_like(truth, value) for value in (-1.0, 0.0, 1.0, 2.0)]
    torch.testing.assert_close(deep_supervision(maps, truth), sum(structure_loss(m, truth) for m in maps))
    good = [(2 * truth - 1) * 9] * 4
    assert dual_supervision([*good, *[-m for m in good]], truth) < dual_supervision([*good, *good], truth)


def drawn(seed: int, height: int = 24, width: int = 31) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - rng.integers(6, 18)) ** 2 + (columns - rng.integers(6, 25)) ** 2 < rng.integers(9, 80)
    return ((0.4 * mask + rng.uniform(0.5, 0.6) * rng.random(mask.shape)) * 255).astype(np.uint8), mask


def test_scores_of_polyp_free_and_faint_frames_and_of_data_sets_follow_the_toolbox():
    scores = segmentation_scores(np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool))
    assert scores["mean_specificity"] == scores["mean_dice"] == scores["dice_at_half"] == 0
    assert scores["s_measure"] == 1
    assert math.isnan(scores["weighted_f"])
    _, mask = drawn(3)
    scores = segmentation_scores((mask.astype(np.uint8) * 100), mask)
    assert (scores["max_dice"], scores["dice_at_half"]) == (pytest.approx(1), 0)
    pairs = [drawn(seed) for seed in range(4)]
    singles = [segmentation_scores(*pair) for pair in pairs]
    scores = dataset_scores(pairs)
    assert scores["mean_dice"] == pytest.approx(np.mean([s["mean_dice"] for s in singles]))
    assert scores["max_dice"] < np.mean([s["max_dice"] for s in singles])
    some, empty = drawn(6), (np.zeros((24, 31), np.uint8), np.zeros((24, 31), bool))
    scores = dataset_scores([some, empty])
    assert scores["weighted_f"] == segmentation_scores(*some)["weighted_f"]
    assert scores["dice_at_half"] == pytest.approx(segmentation_scores(*some)["dice_at_half"] / 2)


def test_crops_show_nothing_that_is_marked_and_the_least_peak_that_keeps_them_empty_is_chosen():
    masks = np.stack([disc(64, 12, 12, 10), np.ones((64, 64), bool)])
    images = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    crops = crops_without_polyp(images, masks, np.random.default_rng(0))
    assert (crops.shape, crops.max()) == ((1, 64, 64, 3), 0)
    assert len(crops_without_polyp(images[1:], masks[1:], np.random.default_rng(0))) == 0
    page = np.where(disc(64, 16, 16, 8), 0.6, np.where(disc(64, 48, 48, 8), 0.55, 0.1)).astype(np.float32)
    page[48, 48] = 0.9
    left = drop_faint(page[None], 0.7)[0] >= 0.5
    assert not left[:32].any()
    assert left[48, 48]
    assert np.array_equal(left[32:], page[32:] >= 0.5)
    masks = np.stack([disc(64, 32, 32, 12)] * 4)
    maps = np.where(masks, 0.95, 0.05).astype(np.float32)
    faint = np.full((4, 64, 64), 0.05, np.float32)
    faint[:, 10:20, 10:20] = 0.65
    assert (share_clean(faint, 0.6), choose_peak(maps, masks, faint)) == (0, 0.7)
    assert choose_peak(np.where(masks, 0.6, 0.05).astype(np.float32), masks, faint) == 0.6
    assert choose_peak(maps, masks, faint[:0]) == 0.5
