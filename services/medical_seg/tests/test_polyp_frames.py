"""The synthetic frames: the same from a seed, different between splits, and drawn as the spec describes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.medical_seg.recipes import polyps
from services.medical_seg.recipes.polyps import draw_frame, draw_split, frames
from services.medical_seg.recipes.sample_sheet import contact_sheet


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


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_mucosa_is_reddish_on_average_as_in_the_spec(thirty):
    mean = np.mean([image[~mask].mean(axis=0) for image, mask in zip(thirty.images, thirty.masks, strict=True)], axis=0)
    assert mean[0] > 1.5 * mean[1] > 1.5 * mean[2] * 0.95


def test_the_noise_of_a_texture_is_smooth_and_stronger_in_red():
    texture = polyps._texture(rng(), 160)
    assert np.abs(np.diff(texture, axis=1)).max() < 0.05
    np.testing.assert_allclose(texture[..., 0], 1.3 * texture[..., 1], rtol=1e-5)


def test_textures_reach_about_the_sum_of_their_amplitudes():
    peak = max(np.abs(polyps._texture(rng(seed), 160)[..., 1]).max() for seed in range(10))
    assert 0.12 < peak < 0.26


def test_a_dome_is_lit_from_one_side_and_never_darker_than_its_ambient_light():
    distance, angle = polyps._distance(41, 20, 20), polyps._angle(41, 20, 20)
    shading = polyps._dome(distance / 20, angle, np.array([np.sqrt(0.75), 0, 0.5]))
    assert shading[20, 34] > shading[20, 20] > shading[20, 6]
    assert 0.55 <= shading.min() <= shading.max() <= 1


def test_the_lamp_is_in_front_of_the_picture():
    lights = np.stack([polyps._light(rng(seed)) for seed in range(50)])
    np.testing.assert_allclose(np.linalg.norm(lights, axis=1), 1)
    assert lights[:, 2].min() >= 0.5 - 1e-9


def test_tints_stay_near_the_mucosa():
    tints = np.stack([polyps._tint(rng(seed)) for seed in range(100)])
    assert np.abs(tints.max(axis=1) - 0.75).max() < 1e-5  # the value of the colour is kept
    assert tints.std(axis=0).max() < 0.1


def test_highlights_are_white_and_at_most_three_pixels_in_radius():
    for seed in range(20):
        picture = np.zeros((21, 21, 3), np.float32)
        polyps._highlight(rng(seed), picture, 10, 10)
        lit = picture[..., 0] == 1
        assert 5 <= lit.sum() <= 29
        assert lit[10, 10]


def test_distractors_are_dark_bands_or_bright_rings_and_no_polyps():
    kinds = set()
    for seed in range(30):
        picture = np.full((160, 160, 3), 0.5, np.float32)
        polyps._distract(rng(seed), picture)
        change = picture.mean() - 0.5
        if abs(change) > 1e-6:
            kinds.add("band" if change < 0 else "ring")
        assert np.abs(picture - 0.5).max() <= 0.45
    assert kinds == {"band", "ring"}


def test_vessels_wander_smoothly():
    path = np.array(polyps._walk(rng(), 160))
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(steps, 3, rtol=1e-6)


@given(st.integers(0, 2**32), st.booleans())
def test_any_seed_gives_a_frame_whose_mask_fits_it(seed, empty):
    frame = draw_frame(rng(seed), 96, empty=empty)
    assert frame.mask.any() != empty
    assert frame.mask.mean() < 0.9
    assert frame.image.std() > 1
