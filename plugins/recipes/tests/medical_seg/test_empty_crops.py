"""Crops without a polyp are without one, and a faint component is dropped where that costs nothing."""

import numpy as np

from fovea_recipes.medical_seg.empty_crops import choose_peak, crops_without_polyp, drop_faint, share_clean


def disc(side: int, y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def test_crops_show_nothing_that_is_marked():
    masks = np.stack([disc(64, 12, 12, 10), np.ones((64, 64), bool)])
    images = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    crops = crops_without_polyp(images, masks, np.random.default_rng(0))
    assert crops.shape == (1, 64, 64, 3)
    assert crops.max() == 0
    assert len(crops_without_polyp(images[1:], masks[1:], np.random.default_rng(0))) == 0


def test_a_component_without_a_sure_pixel_is_dropped_and_others_stay():
    page = np.where(disc(64, 16, 16, 8), 0.6, np.where(disc(64, 48, 48, 8), 0.55, 0.1)).astype(np.float32)
    page[48, 48] = 0.9
    left = drop_faint(page[None], 0.7)[0] >= 0.5
    assert not left[:32].any()
    assert left[48, 48]
    assert np.array_equal(left[32:], page[32:] >= 0.5)


def test_the_least_peak_that_keeps_crops_empty_is_chosen_unless_polyps_go():
    masks = np.stack([disc(64, 32, 32, 12)] * 4)
    maps = np.where(masks, 0.95, 0.05).astype(np.float32)
    faint = np.full((4, 64, 64), 0.05, np.float32)
    faint[:, 10:20, 10:20] = 0.65
    assert share_clean(faint, 0.6) == 0
    assert choose_peak(maps, masks, faint) == 0.7
    assert choose_peak(np.where(masks, 0.6, 0.05).astype(np.float32), masks, faint) == 0.6
    assert choose_peak(maps, masks, faint[:0]) == 0.5
