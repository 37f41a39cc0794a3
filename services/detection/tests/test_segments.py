"""Segments of time: what is sampled, labelled, proposed and suppressed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detection.segments.proposals import (
    boundary_labels,
    classify_proposals,
    sampling_mask,
    score_proposals,
    soft_nms,
)
from services.detection.tests.filling import read


@pytest.mark.parametrize("name", ["bmn_t24_c400", "bmn_t40_c64"])
def test_sampling_mask_equals_the_published_one(name):
    golden = read(f"{name}.arrays")
    mask = sampling_mask(golden["start"].shape[1])
    for (start, end), column in zip(golden["mask_pairs"], golden["mask_vals"], strict=True):
        np.testing.assert_allclose(mask[:, :, start, end], column, atol=1e-6)
    np.testing.assert_allclose(mask.sum(), golden["mask_sum"][0], rtol=1e-6)


def test_a_point_just_left_of_the_video_reads_its_first_cell():
    """The published code truncates towards zero, so that a fraction is negative there."""
    mask = sampling_mask(24, samples=1, per_bin=3, ratio=0.5)
    # From 0 to 0 the points are -1, 0.5 and 2: the first is outside, the others weigh cells 0, 1 and 2.
    np.testing.assert_allclose(mask[:4, 0, 0, 0], [1 / 6, 1 / 6, 1 / 3, 0], atol=1e-7)
    near = sampling_mask(24, samples=1, per_bin=3, ratio=0.49)
    assert near[0, 0, 0, 0] == pytest.approx(1 / 3 + (1 - 0.5) / 3, abs=1e-6)  # points -0.98, 0.5, 1.98


def test_labels_equal_the_published_ones():
    golden = read("bmn_softnms_labels.arrays")
    overlap, start, end = boundary_labels(golden["gt"], 32)
    np.testing.assert_allclose(overlap, golden["gt_iou_map"], atol=1e-6)
    np.testing.assert_allclose(start, golden["gt_start"], atol=1e-9)
    np.testing.assert_allclose(end, golden["gt_end"], atol=1e-9)


def test_a_video_without_segments_has_empty_labels():
    overlap, start, end = boundary_labels(np.empty((0, 2)), 8)
    assert not overlap.any()
    assert not start.any()
    assert not end.any()


def test_soft_suppression_equals_the_published_one():
    golden = read("bmn_softnms_labels.arrays")
    found = soft_nms(golden["xmin"], golden["xmax"], golden["score"], *golden["params"])
    for ours, key in zip(found, ("out_xmin", "out_xmax", "out_score"), strict=True):
        np.testing.assert_allclose(ours, golden[key], atol=1e-9)


def test_the_last_segment_is_never_taken_and_the_input_stays_as_it_was():
    starts, ends, scores = np.array([0.1, 0.1]), np.array([0.5, 0.52]), np.array([0.9, 0.8])
    assert soft_nms(starts, ends, scores)[0].tolist() == [0.1]
    assert scores.tolist() == [0.9, 0.8]
    assert all(part.shape == (0,) for part in soft_nms(np.ones(1), np.ones(1), np.ones(1)))


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_suppression_only_lowers_scores_and_gives_them_in_order(count, seed):
    rng = np.random.default_rng(seed)
    starts, widths = rng.random(count), rng.random(count)
    scores = rng.random(count)
    _, _, kept = soft_nms(starts, starts + widths, scores)
    assert (np.diff(kept) <= 0).all()
    assert kept[0] == scores.max()
    assert len(kept) == count - 1


def test_proposals_end_before_the_video_does():
    length = 6
    confidence = np.full((2, length, length), 0.5)
    starts, ends, scores = score_proposals(confidence, np.full(length, 0.5), np.full(length, 0.5))
    assert len(starts) == length * (length - 1) / 2
    assert ends.max() == pytest.approx(5 / 6)
    assert (starts < ends).all()
    assert np.unique(scores).tolist() == [0.5**4]


def test_the_score_multiplies_start_end_and_both_confidences():
    rng = np.random.default_rng(0)
    confidence, start, end = rng.random((2, 5, 5)), rng.random(5), rng.random(5)
    starts, ends, scores = score_proposals(confidence, start, end)
    place = int(np.flatnonzero((np.isclose(starts, 1 / 5)) & np.isclose(ends, 4 / 5))[0])
    assert scores[place] == pytest.approx(start[1] * end[4] * confidence[0, 1, 3] * confidence[1, 1, 3])


def test_class_scores_of_cells_are_averaged_inside_a_proposal():
    classes = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0]])
    starts, ends, labels, scores = classify_proposals(
        np.array([0.25]), np.array([0.75]), np.array([0.8]), classes, best=2
    )
    assert labels.tolist() == [1, 0]
    np.testing.assert_allclose(scores, [0.4, 0])
    assert starts.tolist() == [0.25, 0.25]
    assert ends.tolist() == [0.75, 0.75]


def test_class_scores_of_a_video_hold_for_all_its_proposals():
    starts, _, labels, scores = classify_proposals(
        np.array([0.0, 0.5]), np.array([0.2, 0.9]), np.array([0.5, 1.0]), np.array([0.3, 0.7]), best=1
    )
    assert starts.tolist() == [0.5, 0.0]
    assert labels.tolist() == [1, 1]
    np.testing.assert_allclose(scores, [0.7, 0.35])
