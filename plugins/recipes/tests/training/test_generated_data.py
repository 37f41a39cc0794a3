"""Every generator of synthetic pictures: the same by seed and number, apart between splits, drawn once with a cache."""

import numpy as np
import pytest

from fovea_recipes.detection.bmn.data import videos
from fovea_recipes.detection.hieraedgenet import data as pollen
from fovea_recipes.detection.patnet import data as patches
from fovea_recipes.detection.yolo9tr import data as pavement
from fovea_recipes.medical_seg import polyps

GENERATORS = {"pollen": pollen.slides, "patches": patches.patches, "pavement": pavement.scenes, "polyps": polyps.frames}


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
def test_pictures_follow_from_seed_and_number_and_are_drawn_once_with_a_cache(draw, tmp_path):
    plain, cached = draw("train", 6, seed=1), draw("train", 6, seed=1, cache=tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert plain.digest == cached.digest == draw("train", 6, seed=1, cache=tmp_path).digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    np.testing.assert_array_equal(plain.images, cached.images)
    np.testing.assert_array_equal(plain.images[:3], draw("train", 3, seed=1).images)
    seen = {image.tobytes() for image in plain.images}
    for split, seed in (("valid", 1), ("test", 1), ("train", 2)):
        other = draw(split, 6, seed=seed)
        assert other.digest != plain.digest
        assert not seen & {image.tobytes() for image in other.images}


def test_videos_follow_from_split_and_world():
    drawn = [("train", 0), ("train", 0), ("valid", 0), ("test", 0), ("train", 1)]
    assert len({videos(split, 5, world=world).digest for split, world in drawn}) == 4
