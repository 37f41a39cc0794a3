"""Every generator of synthetic pictures: the same by seed and number, apart between splits, drawn once with a cache."""

import numpy as np
import pytest

from fovea_recipes.detection.bmn.data import videos
from fovea_recipes.detection.hieraedgenet.recipe import HieraEdgeNetDemo
from fovea_recipes.detection.patnet.recipe import PATNetDemo
from fovea_recipes.detection.yolo9tr.recipe import Yolo9trDemo
from fovea_recipes.medical_seg.pranet_demo import PraNetDemo


@pytest.mark.parametrize("kind", [HieraEdgeNetDemo, PATNetDemo, Yolo9trDemo, PraNetDemo])
def test_pictures_follow_from_seed_and_number_and_are_drawn_once_with_a_cache(kind, tmp_path):
    def draw(split="train", count=6, seed=1):
        return kind(seed=seed, train=count, valid=6, test=6).split(split)

    held = [kind(train=6, valid=6, test=6) for _ in range(2)]
    told = held[0].prepare(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert held[1].prepare(tmp_path) == told
    plain, cached = draw(), held[1].split("train")
    assert plain.digest == cached.digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    np.testing.assert_array_equal(plain.images, cached.images)
    np.testing.assert_array_equal(plain.truth, cached.truth)
    np.testing.assert_array_equal(plain.images[:3], draw(count=7).images[:3])
    seen = {image.tobytes() for image in plain.images}
    for split, seed in (("valid", 1), ("test", 1), ("train", 2)):
        other = draw(split, seed=seed)
        assert other.digest != plain.digest
        assert not seen & {image.tobytes() for image in other.images}


def test_videos_follow_from_split_and_world():
    drawn = [("train", 0), ("train", 0), ("valid", 0), ("test", 0), ("train", 1)]
    assert len({videos(split, 5, world=world).digest for split, world in drawn}) == 4
