"""Boxes against golden data and by their properties: decoding, overlap, letterboxing, suppression."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.detection.boxes import letterbox, nms, unletterbox
from services.detection.boxes.geometry import complete_iou, overlap
from services.detection.tests.filling import read

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "val": {"confidence": 0.001, "iou": 0.7, "multi_label": True, "max_detections": 300},
    "agnostic": {"agnostic": True},
    "classes": {"classes": [1, 3], "max_detections": 7},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_suppression_equals_the_published_one(name):
    golden = read("nms.arrays")
    for index, found in enumerate(nms(golden["pred"], **SETTINGS[name])):
        np.testing.assert_allclose(found, golden[f"{name}_{index}"], atol=1e-3)


def test_complete_iou_equals_the_published_one():
    golden = read("boxes.arrays")
    found = complete_iou(torch.from_numpy(golden["ciou_a"]), torch.from_numpy(golden["ciou_b"]))
    np.testing.assert_allclose(found.numpy(), golden["ciou"], atol=1e-5)


def test_letterbox_pads_and_maps_back_as_published():
    boxes = np.array([[10, 20, 300, 200], [-5, -5, 639, 639]], np.float64)
    for high_given, wide_given, auto, high, wide, ratio, pad_x, pad_y, *back in read("boxes.arrays")["letterbox"]:
        height, width = int(high_given), int(wide_given)
        page, found, pads = letterbox(np.zeros((height, width, 3), np.uint8), 640, auto=bool(auto))
        assert page.shape == (high, wide, 3)
        assert (found, *pads) == pytest.approx((ratio, pad_x, pad_y), abs=1e-6)
        np.testing.assert_allclose(unletterbox(boxes, page.shape[:2], (height, width)).ravel(), back, atol=1e-2)


def test_letterbox_of_a_needle_keeps_a_pixel():
    page, *_ = letterbox(np.zeros((1, 4000, 3), np.uint8), 640)
    assert page.shape == (32, 640, 3)


@given(st.integers(8, 900), st.integers(8, 900), st.booleans(), st.sampled_from([192, 320, 640]))
def test_boxes_come_back_from_the_letterbox(height, width, auto, size):
    page, ratio, pads = letterbox(np.zeros((height, width, 3), np.uint8), size, auto=auto)
    box = np.array([[width * 0.25, height * 0.25, width * 0.75, height * 0.75, 0.9, 3]])
    scaled = box.copy()
    scaled[:, :4] = box[:, :4] * ratio + np.array([*pads, *pads])
    back = unletterbox(scaled, page.shape[:2], (height, width))
    # The scale is found again from rounded shapes: up to a pixel of the input, as in the published code.
    np.testing.assert_allclose(back, box, atol=1.5 / ratio)


def _predictions(rng: np.random.Generator, count: int, classes: int) -> np.ndarray:
    centre, size = rng.uniform(0, 300, (2, count)), rng.uniform(4, 90, (2, count))
    return np.concatenate([centre, size, rng.random((classes, count))])[None].astype(np.float32)


@given(st.integers(0, 2**31), st.integers(1, 80), st.booleans(), st.booleans(), st.floats(0.1, 0.9))
def test_what_stays_is_sorted_and_overlaps_no_more_than_allowed(seed, count, agnostic, multi_label, iou):
    options: dict[str, Any] = {"iou": iou, "agnostic": agnostic, "multi_label": multi_label, "max_detections": 20}
    (rows,) = nms(_predictions(np.random.default_rng(seed), count, 3), **options)
    assert (np.diff(rows[:, 4]) <= 0).all()
    assert len(rows) <= 20
    boxes = torch.from_numpy(rows[:, :4])
    pairs = np.triu(overlap(boxes[:, None], boxes[None]).numpy(), 1)
    assert (pairs[agnostic | (rows[:, None, 5] == rows[:, 5])] <= iou + 1e-4).all()


def test_suppression_of_nothing_is_empty():
    assert nms(np.zeros((1, 6, 0), np.float32))[0].shape == (0, 6)
    assert nms(np.zeros((1, 6, 9), np.float32))[0].shape == (0, 6)


def test_boxes_without_area_suppress_nobody():
    flat = np.zeros((1, 5, 3), np.float32)
    flat[0, 4] = (0.9, 0.8, 0.7)
    assert len(nms(flat)[0]) == 3
