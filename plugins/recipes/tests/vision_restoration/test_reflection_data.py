"""The data generator: each formula of the spec, sources that never cross a split, pairs that a seed repeats."""

import numpy as np
import pytest

from fovea.errors import NotReady
from fovea_recipes.vision_restoration import photographs as albums
from fovea_recipes.vision_restoration.pairs import sources
from fovea_recipes.vision_restoration.photographs import PHOTOGRAPHS, photographs
from fovea_recipes.vision_restoration.synthesis import (
    blend_by_screen,
    blend_by_sum,
    blend_defocused,
    blend_varied,
    blur,
)


def flat(value: float, side: int = 24) -> np.ndarray:
    return np.full((side, side, 3), value, np.float32)


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)


def test_formula_a_is_the_sum_where_there_is_room():
    mixture, scene_alone = blend_by_sum(flat(0.3), flat(0.4))
    assert np.allclose(mixture, 0.7)
    assert np.array_equal(scene_alone, flat(0.3))


def test_the_screen_hides_reflections_on_white():
    assert np.allclose(blend_by_screen(flat(1), noise(1))[0], 1)
    assert np.allclose(blend_by_screen(flat(0), noise(1))[0], noise(1))


def test_formula_c_dims_and_blurs_and_changes_with_its_generator():
    drawn = [blend_varied(noise(1), noise(2), np.random.default_rng(seed)) for seed in range(40)]
    dims = np.array([float((clean / noise(1)).mean()) for _, clean in drawn])
    assert dims.min() >= 0.8
    assert dims.max() <= 1
    assert dims.std() > 0.02
    added = [mixture - clean for mixture, clean in drawn]
    assert all(layer.min() >= -1e-6 for layer in added)
    assert all(layer.std() < 0.5 * noise(2).std() for layer in added)


def test_formula_b_adds_in_linear_light():
    # Without a reflection only the scene's own dimming is left: (a T^2.2)^(1/2.2) with a in 0.8..1.
    mixture, clean = blend_defocused(flat(0.5), flat(0), np.random.default_rng(1))
    assert 0.8 ** (1 / 2.2) * 0.5 - 1e-6 <= mixture.mean() <= 0.5 + 1e-6
    assert np.array_equal(clean, flat(0.5))


def test_blurring_keeps_the_mean_and_stops_at_its_radius():
    point = np.zeros((21, 21, 3), np.float32)
    point[10, 10] = 1
    spread = blur(point, 3, 4)
    assert spread.sum() == pytest.approx(3, rel=1e-5)
    assert (spread[10, :6] == 0).all()
    assert (spread[10, 6:15] > 0).all()


@pytest.mark.parametrize("split", PHOTOGRAPHS)
def test_photographs_come_with_the_libraries(split):
    found = photographs(split)
    assert len(found) == len(PHOTOGRAPHS[split])
    assert all(picture.shape[2] == 3 and min(picture.shape[:2]) >= 128 for picture in found)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(albums, "PHOTOGRAPHS", {"test": ("no_such_library_here/x.png",)})
    with pytest.raises(NotReady, match="no_such_library_here"):
        photographs("test")


def test_splits_share_no_scene_and_no_photograph():
    train, test = sources("train", 3, seed=1), sources("test", 3, seed=1)
    seen = {picture.tobytes() for picture in (*train.photographs, *train.scenes)}
    assert not seen & {picture.tobytes() for picture in (*test.photographs, *test.scenes)}
    assert train.digest != test.digest
    assert train.digest == sources("train", 3, seed=1).digest


def test_pairs_repeat_with_their_seed():
    held = sources("valid", 2, seed=1)
    first, again = (held.pairs(np.random.default_rng(5), 6, 64, plain=0.5) for _ in range(2))
    assert np.array_equal(first.mixed, again.mixed)
    assert first.mixed.shape == (6, 64, 64, 3)


def test_plain_pairs_are_equal_and_others_are_not():
    found = sources("valid", 2, seed=1).pairs(np.random.default_rng(5), 12, 64, plain=0.5)
    assert 0 < found.plain.sum() < 12
    for mixed, clean, plain in zip(found.mixed, found.clean, found.plain, strict=True):
        assert np.array_equal(mixed, clean) == plain
