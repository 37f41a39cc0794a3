"""Generated pictures: boxes are tight, inside the picture and of the classes that their names say."""

import numpy as np
import pytest

from fovea_recipes.detection.crack_synthesis import DAMAGE
from fovea_recipes.detection.hieraedgenet.data import Grain, draw_slide
from fovea_recipes.detection.yolo9tr.data import SIDE


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
    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.data._draw", lambda *_: None)
    changed = np.abs(with_grain - np.median(with_grain, axis=(0, 1))).max(axis=2) > 60
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    drawn = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    assert np.abs(drawn - grain.box(192)).max() <= 5
    assert (drawn[:2] >= grain.box(192)[:2] - 1.5).all()
    assert (drawn[2:] <= grain.box(192)[2:] + 1.5).all()
