"""Regions, outlines and run lengths say the same about a mask, and give it back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from shared.vision import mask_regions

masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def drawn(rows):
    return np.array([[c == "#" for c in row] for row in rows])


RING = drawn(["......", ".####.", ".#..#.", ".####.", "......"])
TOUCHING = drawn(["#.", ".#"])


def disc(height=120, width=160, radius=40):
    y, x = np.mgrid[:height, :width]
    return (x - 70) ** 2 + (y - 60) ** 2 < radius**2


def area(points):
    x, y = points[:, 0], points[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def filled(outline_list, shape):
    """Even-odd fill, by crossing counts of pixel centres: an independent way back to the mask."""
    crossings = np.zeros(shape, int)
    for outline in outline_list:
        for (x1, y1), (x2, y2) in zip(outline.points, np.roll(outline.points, -1, axis=0), strict=True):
            if x1 == x2:
                crossings[min(y1, y2) : max(y1, y2), x1:] += 1
    return crossings % 2 == 1


@given(masks)
def test_outlines_hold_the_mask_turn_at_every_corner_and_one_is_outside_of_each_region(mask):
    found = mask_regions.trace_outlines(mask)
    assert (filled(found, mask.shape) == mask).all()
    assert sum(area(outline.points) for outline in found) == mask.sum()
    assert all((area(outline.points) < 0) == outline.hole for outline in found)
    assert sum(not outline.hole for outline in found) == len(mask_regions.find_regions(mask)[0])
    firsts = [outline.points[0, ::-1].tolist() for outline in found]
    assert firsts == sorted(firsts) == [min(outline.points[:, ::-1].tolist()) for outline in found]
    for outline in found:
        step = np.sign(np.roll(outline.points, -1, axis=0) - outline.points)
        assert (np.abs(step).sum(axis=1) == 1).all()
        assert (np.roll(step, 1, axis=0) != step).any(axis=1).all()


@given(masks, st.integers(1, 9))
def test_regions_agree_with_their_label_map_and_exactly_the_pixels_of_some_are_kept(mask, least):
    found, labels = mask_regions.find_regions(mask)
    assert ((labels > 0) == mask).all()
    assert [r.area for r in found] == sorted((r.area for r in found), reverse=True)
    for region in found:
        here = labels == region.label
        assert region.area == here.sum()
        assert mask_regions.occupied_window(here) == (region.rows, region.columns)
        assert ndimage.label(here, np.ones((3, 3)))[1] == 1
    kept = mask_regions.keep_regions(labels, [region for region in found if region.area >= least])
    assert kept.sum() == sum(region.area for region in found if region.area >= least)
    assert not (kept & ~mask).any()


def test_run_lengths_are_those_of_coco():
    for mask, text in (
        # Written by pycocotools 2.0.11.
        (RING, "632NO010O0124"),
        (TOUCHING, "0120"),
        (
            disc(),
            "le3a0S38I6K4L4L4M2N2M4M2N2N2N2N2N2O0O2N2N2O0O2O0O2O0O2O000O2O00000O2O00000000000000000000000000000001N1000001N10001N101N101N101N2N2N101N2N2N2N2N2N3L3N2N3L4L4L5J7HPj5",
        ),
        (np.zeros((3, 5), bool), "?"),
        (np.ones((3, 5), bool), "0?"),
        (
            disc(700, 900, 33),
            "lPj0a0Xe06K4L4L4M2M4M2N2N2N2N2N2O0O2N2O0O2O0O2O0O2O000O2O00000000000000000000000000000001N10001N101N101N101N2N101N2N2N2N2N2N3L3N3L4L4L5JkhPa0",
        ),
    ):
        assert mask_regions.encode_run_lengths(mask) == text


@given(masks)
def test_run_lengths_give_the_mask_back_and_those_that_do_not_fill_the_size_are_refused(mask):
    assert (mask_regions.decode_run_lengths(mask_regions.encode_run_lengths(mask), *mask.shape) == mask).all()
    for text in ("", "3", "`", "04O"):
        with pytest.raises(ValueError, match="not 3×5"):
            mask_regions.decode_run_lengths(text, 3, 5)
