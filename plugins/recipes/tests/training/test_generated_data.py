"""Generated pictures: the same by seed and number, apart between splits, drawn once with a cache, in tight boxes."""

import numpy as np
import pytest

from fovea_recipes.detection.bmn.data import videos
from fovea_recipes.detection.crack_synthesis import DAMAGE
from fovea_recipes.detection.hieraedgenet.data import Grain, draw_slide
from fovea_recipes.detection.hieraedgenet.recipe import HieraEdgeNetDemo
from fovea_recipes.detection.patnet.recipe import PATNetDemo
from fovea_recipes.detection.yolo9tr.data import SIDE
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
    assert (plain.digest, {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}) == (cached.digest, stamps)
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


@pytest.mark.parametrize("name", DAMAGE)
def test_a_box_is_the_extent_of_its_mask(name):
    damage = DAMAGE[name](np.random.default_rng(8), SIDE)
    assert damage.box is not None
    x1, y1, x2, y2 = damage.box
    inside = damage.mask[y1:y2, x1:x2]
    assert inside.sum() == damage.mask.sum()
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_a_box_is_tight_around_what_was_drawn(monkeypatch):
    grain = Grain(kind=7, x=90, y=100, a=20, b=17, angle=0.4)
    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.data._scatter", lambda *_: [grain])
    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.data._debris", lambda *_: None)
    with_grain = draw_slide(np.random.default_rng(4), 0, 192)[0].astype(int)
    changed = np.abs(with_grain - np.median(with_grain, axis=(0, 1))).max(axis=2) > 60
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    drawn = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    assert np.abs(drawn - grain.box(192)).max() <= 5
    assert (drawn[:2] >= grain.box(192)[:2] - 1.5).all()
    assert (drawn[2:] <= grain.box(192)[2:] + 1.5).all()
