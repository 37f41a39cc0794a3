"""Slices cover a picture, and boxes that a border cuts become one again."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detection.boxes.tiling import Slice, make_slices, merge_slices


@given(st.integers(1, 900), st.integers(1, 900), st.integers(64, 400), st.floats(0, 0.5))
def test_slices_cover_every_pixel_and_overlap_enough(height, width, side, overlap):
    found = make_slices(height, width, side, overlap)
    if max(height, width) <= side:
        assert found == []
        return
    seen = np.zeros((height, width), bool)
    for part in found:
        assert 0 <= part.x1 < part.x2 <= width
        assert 0 <= part.y1 < part.y2 <= height
        assert max(part.x2 - part.x1, part.y2 - part.y1) <= side
        seen[part.y1 : part.y2, part.x1 : part.x2] = True
    assert seen.all()
    assert all(b - a <= side * (1 - overlap) + 1 for a, b in pairwise(sorted({part.x1 for part in found})))


PARTS = [Slice(0, 0, 100, 100), Slice(80, 0, 180, 100)]
SHAPE = (100, 180)


def _merge(rows: list[list[float]], sources: list[int]) -> list[list[float]]:
    array = np.array(rows, np.float64).reshape(-1, 6)
    found = merge_slices(array, np.array(sources), PARTS, SHAPE, iou=0.45, agnostic=False, most=10)
    return [[round(v, 3) for v in row] for row in found.tolist()]


def test_halves_of_a_long_object_are_joined():
    left, right = [20, 40, 100, 60, 0.8, 1], [80, 41, 160, 60, 0.9, 1]
    assert _merge([left, right], [0, 1]) == [[20, 40, 160, 60, 0.9, 1]]


def test_a_part_inside_the_whole_is_swallowed():
    whole, part = [70, 10, 130, 50, 0.7, 0], [70, 12, 100, 49, 0.9, 0]
    assert _merge([whole, part], [-1, 0]) == [[70, 10, 130, 50, 0.9, 0]]


@pytest.mark.parametrize(
    ("rows", "sources"),
    [
        ([[20, 40, 100, 60, 0.8, 1], [80, 41, 160, 60, 0.9, 2]], [0, 1]),  # another class
        ([[20, 10, 100, 20, 0.8, 1], [80, 60, 160, 80, 0.9, 1]], [0, 1]),  # another height
        ([[20, 40, 60, 60, 0.8, 1], [120, 40, 160, 60, 0.9, 1]], [0, 1]),  # neither is cut
        ([[20, 40, 100, 60, 0.8, 1], [20, 70, 100, 90, 0.9, 1]], [0, 0]),  # one slice saw both
    ],
)
def test_different_objects_stay_apart(rows, sources):
    assert len(_merge(rows, sources)) == 2


def test_boxes_at_the_edge_of_the_picture_are_not_cut():
    assert len(_merge([[0, 40, 30, 60, 0.8, 1], [150, 40, 180, 60, 0.9, 1]], [0, 1])) == 2


def test_most_is_kept():
    rows = [[x, 0, x + 5, 5, 0.5, 0] for x in range(0, 170, 8)]
    assert len(_merge(rows, [0] * len(rows))) == 10
