"""One affine map moves a picture, its mask and its boxes alike."""

import numpy as np
import pytest

from fovea_recipes.training.data.augment import Augment, warp_boxes, warp_mask, warp_picture


@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_the_picture(seed):
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[40:80, 60:100] = 255
    rng = np.random.default_rng(seed)
    warp = Augment(quarters=True, zoom=(0.8, 1.0), shift=0.05).warp(rng, (120, 160), (128, 128), keep_aspect=True)
    rows, columns = np.nonzero(warp_picture(pixels, warp, (128, 128), grey=0)[..., 0] > 128)
    (box,) = warp_boxes(np.array([[60, 40, 100, 80]], np.float32), warp)
    assert np.allclose(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], atol=2)


def test_a_mask_follows_the_picture():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 255
    warp = Augment().warp(np.random.default_rng(3), (64, 64), (96, 96))
    pixels = warp_picture(np.repeat(mask[..., None], 3, axis=2), warp, (96, 96))
    assert np.abs(pixels[..., 0].astype(int) - warp_mask(mask, warp, (96, 96))).max() <= 1


def test_nothing_changes_when_nothing_may():
    still = Augment(
        flip_x=0, flip_y=0, turn=0, zoom=(1, 1), stretch=0, shift=0, brightness=0, contrast=0, gamma=0,
        saturation=0, hue=0, blur=0, noise=0, compress=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
    assert np.allclose(still.warp(rng, (40, 50), (40, 50)), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert np.array_equal(still.recolour(pixels, rng), pixels)


def test_the_same_draw_gives_the_same_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    first, second = (Augment().recolour(pixels, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
