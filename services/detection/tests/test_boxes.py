"""Boxes: decoding, suppression, and pictures cut into tiles."""

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.detection.boxes import complete_iou, decode, letterbox, nms, unletterbox
from services.detection.boxes.tiling import Slice, make_slices, merge_slices
from services.detection.tests.filling import read

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {}, "val": {"confidence": 0.001, "iou": 0.7, "multi_label": True, "max_detections": 300},
    "agnostic": {"agnostic": True}, "classes": {"classes": [1, 3], "max_detections": 7},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_suppression_equals_the_published_one(name):
    golden = read("nms.arrays")
    for index, found in enumerate(nms(golden["pred"], **SETTINGS[name])):
        np.testing.assert_allclose(found, golden[f"{name}_{index}"], atol=1e-3)


def test_letterbox_and_complete_iou_are_the_published_ones_and_a_needle_keeps_a_pixel():
    boxes = np.array([[10, 20, 300, 200], [-5, -5, 639, 639]], np.float64)
    for high_given, wide_given, auto, high, wide, ratio, pad_x, pad_y, *back in read("boxes.arrays")["letterbox"]:
        height, width = int(high_given), int(wide_given)
        page, found, pads = letterbox(np.zeros((height, width, 3), np.uint8), 640, auto=bool(auto))
        assert page.shape == (high, wide, 3)
        assert (found, *pads) == pytest.approx((ratio, pad_x, pad_y), abs=1e-6)
        np.testing.assert_allclose(unletterbox(boxes, page.shape[:2], (height, width)).ravel(), back, atol=1e-2)
    page, *_ = letterbox(np.zeros((1, 4000, 3), np.uint8), 640)
    assert page.shape == (32, 640, 3)
    golden = read("boxes.arrays")
    found = complete_iou(torch.from_numpy(golden["ciou_a"]), torch.from_numpy(golden["ciou_b"]))
    np.testing.assert_allclose(found.numpy(), golden["ciou"], atol=1e-5)


def test_nothing_is_suppressed_without_predictions_or_area_and_what_is_decoded_as_it_is():
    assert nms(np.zeros((1, 6, 0), np.float32))[0].shape == (0, 6)
    assert nms(np.zeros((1, 6, 9), np.float32))[0].shape == (0, 6)
    flat = np.zeros((1, 5, 3), np.float32)
    flat[0, 4] = (0.9, 0.8, 0.7)
    assert len(nms(flat)[0]) == 3
    torch.manual_seed(0)
    found = decode([3 * torch.randn(2, 67, side, side) for side in (4, 2, 1)], 3)
    for ours, theirs in zip(nms(found), nms(found.numpy()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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


def test_halves_of_a_long_object_and_a_part_inside_the_whole_are_joined_and_most_are_kept():
    left, right = [20, 40, 100, 60, 0.8, 1], [80, 41, 160, 60, 0.9, 1]
    assert _merge([left, right], [0, 1]) == [[20, 40, 160, 60, 0.9, 1]]
    whole, part = [70, 10, 130, 50, 0.7, 0], [70, 12, 100, 49, 0.9, 0]
    assert _merge([whole, part], [-1, 0]) == [[70, 10, 130, 50, 0.9, 0]]
    rows = [[x, 0, x + 5, 5, 0.5, 0] for x in range(0, 170, 8)]
    assert len(_merge(rows, [0] * len(rows))) == 10
    tracemalloc.start()
    assert _merge([[x % 90, 40, x % 90 + 10, 60, 0.8, 1] for x in range(2000)], [0, 1] * 1000)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(("rows", "sources"), [
    ([[20, 40, 100, 60, 0.8, 1], [80, 41, 160, 60, 0.9, 2]], [0, 1]),  # another class
    ([[20, 10, 100, 20, 0.8, 1], [80, 60, 160, 80, 0.9, 1]], [0, 1]),  # another height
    ([[20, 40, 60, 60, 0.8, 1], [120, 40, 160, 60, 0.9, 1]], [0, 1]),  # neither is cut
    ([[20, 40, 100, 60, 0.8, 1], [20, 70, 100, 90, 0.9, 1]], [0, 0]),  # one slice saw both
    ([[0, 40, 30, 60, 0.8, 1], [150, 40, 180, 60, 0.9, 1]], [0, 1]),  # the picture's edge cuts nothing
])  # fmt: skip
def test_different_objects_stay_apart(rows, sources):
    assert len(_merge(rows, sources)) == 2
