"""Generated slides: the same by seed, never shared between splits, and with boxes that hold what was drawn."""

import numpy as np
import pytest

from fovea_recipes.detection.hieraedgenet.data import KINDS, Grain, draw_slide, draw_split


@pytest.fixture(scope="module")
def train():
    return draw_split("train", 40, seed=3)


def test_a_slide_depends_on_nothing_but_its_number(train):
    again = draw_split("train", 5, seed=3)
    assert np.array_equal(again.images, train.images[:5])
    assert np.array_equal(again.grains, train.grains[train.grains[:, 0] < 5])


def test_every_kind_is_drawn_and_boxes_lie_inside(train):
    assert set(train.grains[:, 1].astype(int)) == set(range(len(KINDS)))
    boxes = train.grains[:, 2:]
    assert boxes.min() >= 0
    assert boxes.max() <= 192
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 5
    counts = np.bincount(train.grains[:, 0].astype(int), minlength=40)
    assert 1 <= counts.min() <= counts.max() <= 6


def test_a_box_is_tight_around_what_was_drawn(monkeypatch):
    grain = Grain(kind=7, x=90, y=100, a=20, b=17, angle=0.4)
    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.data._scatter", lambda *_: [grain])
    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.data._debris", lambda *_: None)
    with_grain = draw_slide(np.random.default_rng(4)).image.astype(int)
    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.data._draw", lambda *_: None)
    changed = np.abs(with_grain - np.median(with_grain, axis=(0, 1))).max(axis=2) > 60
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    drawn = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    assert np.abs(drawn - grain.box(192)).max() <= 5
    assert (drawn[:2] >= grain.box(192)[:2] - 1.5).all()
    assert (drawn[2:] <= grain.box(192)[2:] + 1.5).all()
