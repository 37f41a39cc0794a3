"""The synthetic frames: the same from a seed, different between splits, and drawn as the spec describes."""

from __future__ import annotations

import numpy as np
import pytest

from services.medical_seg.recipes.polyps import draw_frame, draw_split, frames
from services.medical_seg.recipes.sheet import contact_sheet


@pytest.fixture(scope="module")
def thirty():
    return draw_split("train", 30, seed=1)


def test_frames_are_pictures_with_masks_of_their_size(thirty):
    assert thirty.images.shape == (30, 160, 160, 3)
    assert thirty.images.dtype == np.uint8
    assert thirty.masks.shape == (30, 160, 160)
    assert thirty.masks.dtype == np.bool_


def test_one_frame_in_ten_has_no_polyp(thirty):
    assert [index for index, mask in enumerate(thirty.masks) if not mask.any()] == [9, 19, 29]


def test_polyps_are_as_large_as_the_radii_allow(thirty):
    areas = thirty.masks[thirty.masks.any(axis=(1, 2))].sum(axis=(1, 2))
    assert areas.min() > 3.14 * 12**2 * 0.4  # cut by the edge of the picture or the vignette at worst
    assert areas.max() < 2 * 3.14 * (38 * 1.3) ** 2


def test_a_split_is_the_same_from_its_seed(thirty):
    again = draw_split("train", 30, seed=1)
    assert again.digest == thirty.digest
    np.testing.assert_array_equal(again.images, thirty.images)


def test_a_frame_depends_on_its_index_and_not_on_how_many_are_drawn(thirty):
    np.testing.assert_array_equal(draw_split("train", 3, seed=1).images, thirty.images[:3])


@pytest.mark.parametrize(("split", "seed"), [("valid", 1), ("test", 1), ("train", 2)])
def test_other_splits_and_seeds_share_no_frame(thirty, split, seed):
    other = draw_split(split, 10, seed=seed)
    assert other.digest != draw_split("train", 10, seed=1).digest
    assert not {image.tobytes() for image in thirty.images} & {image.tobytes() for image in other.images}


def test_the_polyp_is_where_the_mask_says():
    """The same frame with and without its polyp differs inside the mask, and hardly far outside of it."""
    rng = np.random.default_rng
    found = [draw_frame(rng((seed, 3)), empty=False) for seed in range(20)]
    contrast = []
    for frame in found:
        inside = frame.image[frame.mask].mean(axis=0)
        seen = (frame.image.max(axis=-1) > 40) & ~frame.mask
        contrast.append(np.abs(inside - frame.image[seen].mean(axis=0)).max())
    assert np.median(contrast) > 15


def test_half_of_the_frames_are_round_and_their_masks_end_where_they_do(thirty):
    dark = np.array([image[:3, :3].max() < 40 for image in thirty.images])
    assert 0.25 < dark.mean() < 0.75
    rows, columns = np.ogrid[:160, :160]
    outside = np.hypot(rows - 79.5, columns - 79.5) > 0.62 * 160
    assert not thirty.masks[dark][:, outside].any()


def test_frames_can_be_drawn_at_other_sizes():
    frame = draw_frame(np.random.default_rng(1), 96)
    assert frame.image.shape == (96, 96, 3)


def test_cached_frames_are_the_drawn_ones_and_are_drawn_once(tmp_path):
    first = frames("valid", 4, seed=2, cache=tmp_path)
    np.testing.assert_array_equal(first.images, draw_split("valid", 4, seed=2).images)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = frames("valid", 4, seed=2, cache=tmp_path)
    assert second.digest == first.digest == draw_split("valid", 4, seed=2).digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_frames_without_a_cache_leave_no_file():
    assert frames("valid", 2, seed=2).digest == draw_split("valid", 2, seed=2).digest


def test_a_sheet_shows_frames_above_their_masks():
    drawn = draw_split("test", 5, seed=1, size=32)
    sheet = contact_sheet(drawn, columns=3).convert("RGB")
    assert sheet.size == (3 * 36 - 4, 4 * 36 - 4)
    shown = np.asarray(sheet)[36:68, :32] > 128
    assert (shown.all(axis=-1) == drawn.masks[0]).mean() > 0.99
