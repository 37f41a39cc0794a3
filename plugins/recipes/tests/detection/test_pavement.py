"""The generator of pavement: the same from the same seed, boxes tight, classes as their names say."""

import numpy as np
import pytest

from fovea_recipes.detection.crack_synthesis import DAMAGE
from fovea_recipes.detection.yolo9tr.data import MOST, NAMES, SIDE, draw_scene, draw_split, scenes


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_follows_from_its_seed_and_shades_what_it_covers(name):
    one, two = (DAMAGE[name](np.random.default_rng(5), SIDE) for _ in range(2))
    assert np.array_equal(one.mask, two.mask)
    assert np.array_equal(one.shade, two.shade)
    assert one.mask.any()
    assert one.shade[one.mask].mean() < 0.97
    assert (one.shade == 1).mean() > 0.5


@pytest.mark.parametrize("name", DAMAGE)
def test_a_box_is_the_extent_of_its_mask(name):
    damage = DAMAGE[name](np.random.default_rng(8), SIDE)
    assert damage.box is not None
    x1, y1, x2, y2 = damage.box
    inside = damage.mask[y1:y2, x1:x2]
    assert inside.sum() == damage.mask.sum()
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_scenes_hold_one_to_four_boxes_inside_the_picture():
    kinds = set()
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed))
        assert (scene.image.shape, scene.image.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert len(scene.boxes) <= MOST
        assert (scene.boxes[:, 1:] >= 0).all()
        assert (scene.boxes[:, 1:] <= SIDE).all()
        assert (scene.boxes[:, 3:] > scene.boxes[:, 1:3]).all()
        kinds |= set(scene.boxes[:, 0].astype(int))
    assert kinds == set(range(len(NAMES)))


def test_splits_share_no_scene_and_repeat(tmp_path):
    train, again, test = (scenes(s, 3, seed=1, cache=tmp_path) for s in ("train", "train", "test"))
    assert train.digest == again.digest == draw_split("train", 3, seed=1).digest
    assert train.digest != test.digest
    assert np.array_equal(np.asarray(train.images), draw_split("train", 3, seed=1).images)
