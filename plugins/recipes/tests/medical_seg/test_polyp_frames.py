"""The synthetic frames: the same from a seed, different between splits, and drawn as the spec describes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea_recipes.medical_seg.polyps import draw_frame, draw_split, frames


@pytest.fixture(scope="module")
def thirty():
    return draw_split("train", 30, seed=1)


def test_one_frame_in_ten_has_no_polyp(thirty):
    assert [index for index, mask in enumerate(thirty.masks) if not mask.any()] == [9, 19, 29]


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


def test_cached_frames_are_the_drawn_ones_and_are_drawn_once(tmp_path):
    first = frames("valid", 4, seed=2, cache=tmp_path)
    np.testing.assert_array_equal(first.images, draw_split("valid", 4, seed=2).images)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = frames("valid", 4, seed=2, cache=tmp_path)
    assert second.digest == first.digest == draw_split("valid", 4, seed=2).digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


@given(st.integers(0, 2**32), st.booleans())
def test_any_seed_gives_a_frame_whose_mask_fits_it(seed, empty):
    frame = draw_frame(np.random.default_rng(seed), 96, empty=empty)
    assert frame.mask.any() != empty
    assert frame.mask.mean() < 0.9
    assert frame.image.std() > 1
