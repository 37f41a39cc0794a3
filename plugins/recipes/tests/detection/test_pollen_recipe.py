"""The recipe over slides: its augmentation keeps boxes on their grains, and its measures are sound."""

import numpy as np
import pytest
import torch

from fovea_recipes.detection.hieraedgenet.data import KINDS
from fovea_recipes.detection.hieraedgenet.recipe import HieraEdgeNetDemo, rotate_slides


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    recipe = HieraEdgeNetDemo(train=6, valid=2, test=2, side=96)
    recipe.prepare(tmp_path_factory.mktemp("slides"))
    return recipe


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_a_turned_box_stays_around_its_grain(turns, flip):
    image = np.zeros((40, 40, 3), np.uint8)
    image[4:10, 12:30] = 255  # x 12..30, y 4..10
    rows = np.array([[2, 21 / 40, 7 / 40, 18 / 40, 6 / 40]], np.float32)
    made, boxes = rotate_slides(image, rows, turns, flip=flip)
    ys, xs = np.nonzero(made[..., 0])
    kind, x, y, w, h = boxes[0]
    assert kind == 2
    np.testing.assert_allclose(
        [x * 40, y * 40, w * 40, h * 40],
        [(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, np.ptp(xs) + 1, np.ptp(ys) + 1],
        atol=1e-4,
    )
    assert rows[0, 1] == np.float32(21 / 40)  # the caller's rows are its own


def test_the_true_boxes_score_one_and_count_right(small, monkeypatch):
    def perfect(_net, images):
        made = torch.zeros(len(images), 4 + len(KINDS), 10)
        for index in range(len(images)):
            for place, (kind, x1, y1, x2, y2) in enumerate(small.slides("test").of(index).tolist()):
                made[index, :4, place] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                made[index, 4 + int(kind), place] = 0.9
        return made

    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.recipe.predict_slides", perfect)
    found = small.measure(torch.nn.Identity())
    assert (found["map_50"], found["count_error"]) == (pytest.approx(1, abs=0.01), 0)
