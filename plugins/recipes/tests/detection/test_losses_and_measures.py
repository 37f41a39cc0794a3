"""Losses and measures of boxes and segments: golden tables, resamples, and cases that one can count by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from fovea_recipes.detection.bmn.loss import balanced_entropy, overlap_regression
from fovea_recipes.detection.losses import assign, dual_detection_loss
from fovea_recipes.detection.metrics import box_average_precision, temporal
from fovea_recipes.detection.metrics.boxes import resampled_map50
from fovea_recipes.detection.model_selection import choose_scores, count_errors
from plugins.recipes.tests.golden_files import read


def test_items_and_total_equal_the_published_ones_and_no_objects_leave_a_finite_loss_of_classes():
    golden = read("yolo9tr-loss.arrays")  # inputs are kept in 16 bits: half the bytes, and within the tolerance
    main, auxiliary = ([torch.from_numpy(golden[f"raw_{b}_{i}"]).float() for i in range(3)] for b in ("main", "aux"))
    total, items = dual_detection_loss(main, auxiliary, torch.from_numpy(golden["targets"]), 7)
    np.testing.assert_allclose(items.numpy(), golden["items_box_cls_dfl"], rtol=2e-4, atol=1e-3)
    assert total.item() == pytest.approx(golden["loss"][0], rel=2e-4, abs=1e-3)
    leaves = [level.clone().requires_grad_() for level in main]
    total, items = dual_detection_loss(leaves, auxiliary, torch.zeros(0, 6), 7)
    total.backward()  # type: ignore[no-untyped-call]
    assert items[0] == items[2] == 0
    assert items[1] > 0
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None)


def _grid(side: int) -> torch.Tensor:
    at = torch.arange(side) * 8 + 4.0
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).reshape(-1, 2)


def test_cells_outside_never_get_an_object_and_the_best_fit_gets_what_is_contested_and_its_overlap():
    centres = _grid(8)
    boxes = torch.tensor([[8.0, 8, 40, 40]]).expand(64, 4)
    found = assign(torch.full((64, 3), 0.5), boxes, centres, torch.tensor([[2.0, 8, 8, 40, 40]]))
    assert not found.chosen[~((centres > 8) & (centres < 40)).all(dim=1)].any()
    assert int(found.chosen.sum()) == 10
    assert found.scores[found.chosen, 2].gt(0).all()
    assert not found.scores[:, :2].any()
    centres = _grid(4)
    small, large = [4.0, 4, 28, 28], [0.0, 0, 32, 32]
    boxes = torch.tensor([small]).repeat(16, 1)
    found = assign(torch.full((16, 2), 0.5), boxes, centres, torch.tensor([[0.0, *large], [1.0, *small]]))
    contested = ((centres > 4) & (centres < 28)).all(dim=1)
    assert contested.sum() == 4
    assert torch.equal(found.boxes[contested], torch.tensor([small]).expand(4, 4))
    boxes = torch.tensor([[0.0, 0, 16, 16], [0.0, 0, 16, 12], [40.0, 40, 50, 50], [40.0, 40, 50, 50]])
    centres = torch.tensor([[6.0, 6], [8.0, 8], [10.0, 6], [100.0, 100]])
    found = assign(torch.full((4, 1), 0.5), boxes, centres, torch.tensor([[0.0, 0, 0, 16, 16]]))
    assert found.scores[0, 0].item() == pytest.approx(1, abs=1e-3)
    assert 0 < found.scores[1, 0] < found.scores[0, 0]
    assert found.scores[3, 0] == 0


def test_positives_negatives_and_ranges_of_overlap_weigh_the_same():
    found, positive = torch.full((4, 25), 0.3), torch.zeros(4, 25, dtype=torch.bool)
    positive[0, :5] = True
    expected = -0.5 * (torch.tensor(0.3).log() + torch.tensor(0.7).log())
    torch.testing.assert_close(balanced_entropy(found, positive), expected, atol=1e-4, rtol=1e-4)
    found, positive = torch.rand(6, 6), torch.rand(6, 6) > 0.5
    among = torch.rand(6, 6) > 0.3
    expected = balanced_entropy(found[among], positive[among])
    torch.testing.assert_close(balanced_entropy(found, positive, among), expected)
    for positive in (torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)):
        assert balanced_entropy(torch.rand(8), positive) == 0
    overlap = torch.tensor([0.9] * 10 + [0.5] * 20 + [0.1] * 40 + [0.0] * 30).reshape(1, 10, 10)
    chance = torch.zeros(1, 10, 10)
    assert overlap_regression(torch.zeros_like(overlap), overlap, chance) == pytest.approx(0.5 * 0.81)
    all_drawn = overlap_regression(torch.zeros_like(overlap), overlap, torch.ones_like(chance))
    assert all_drawn == pytest.approx(0.5 * (10 * 0.81 + 20 * 0.25 + 40 * 0.01) / 70)
    generator = torch.Generator().manual_seed(0)
    many = overlap.repeat(400, 1, 1)
    drawn = overlap_regression(torch.zeros_like(many), many, torch.rand(many.shape, generator=generator))
    assert drawn == pytest.approx(0.5 * (0.81 + 0.25 + 0.01) / 3, abs=0.01)


ONE = np.array([[0, 0, 0, 10, 10]], float)


def test_precision_of_boxes_is_the_published_one_and_detections_have_no_second_choice():
    golden = read("box_map.json")
    truth, found = ([np.array(rows).reshape(-1, n) for rows in golden[k]] for k, n in (("gt", 5), ("pred", 6)))
    precision = box_average_precision(truth, found, golden["iou"])
    np.testing.assert_allclose(precision, golden["ap"], atol=1e-6)
    assert precision[:, 0].mean() == pytest.approx(golden["map50"], abs=1e-6)
    assert precision.mean() == pytest.approx(golden["map"], abs=1e-6)
    assert box_average_precision([ONE], [np.zeros((0, 6))]).tolist() == [[0.0] * 10]
    assert box_average_precision([ONE], [np.array([[0, 0, 10, 10, 0.9, 1]], float)]).max() == 0
    truth = np.array([[0, 0, 0, 10, 10], [0, 0, 3, 10, 13]], float)
    found = np.array([[0, 0, 10, 10, 0.9, 0], [0, 1, 10, 11, 0.8, 0]], float)  # the second fits the first object best
    assert box_average_precision([truth], [found], (0.5,))[0, 0] < 0.76


@pytest.mark.parametrize("protocol", ["anet", "thumos"])
def test_precision_equals_the_published_evaluation(protocol):
    golden = read("activitynet_map.json")
    wanted = golden["result"][protocol]
    found = temporal.temporal_average_precision(golden["gt"], golden["pred"], wanted["tiou"])
    np.testing.assert_allclose(found.T, wanted["ap_per_class"], atol=1e-9)
    assert found.mean() == pytest.approx(wanted["average_mAP"], abs=1e-9)


def test_nothing_found_has_precision_and_recall_zero_and_recall_looks_at_the_best_only():
    truth = [("a", 0.0, 1.0, 0)]
    assert temporal.temporal_average_precision(truth, [], (0.5,)).tolist() == [[0]]
    assert temporal.average_recall(truth, [], 10) == 0
    found = [("a", 3.0, 4.0, 0.9), ("a", 0.0, 0.8, 0.5)]
    assert temporal.average_recall(truth, found, 1, (0.5,)) == 0
    assert temporal.average_recall(truth, found, 2, (0.5, 0.9)) == 0.5


LEVELS = (0.3, 0.5, 0.75)


def rows(rng: np.random.Generator, per_video: int, *, scored: bool) -> list[tuple[Any, ...]]:
    made = []
    for video in range(6):
        for _ in range(rng.integers(per_video + 1)):
            start = rng.uniform(0, 0.8)
            score = (rng.uniform(),) if scored else ()
            made.append((video, start, start + rng.uniform(0.05, 0.2), int(rng.integers(3)), *score))
    return made


def copied(some: list[tuple[Any, ...]], videos: list[int]) -> list[tuple[Any, ...]]:
    return [(place, *row[1:]) for place, video in enumerate(videos) for row in some if row[0] == video]


@pytest.mark.parametrize("seed", range(8))
def test_resampled_scores_are_those_of_copied_rows(seed):
    rng = np.random.default_rng(seed)
    truth, found = rows(rng, 4, scored=False), rows(rng, 25, scored=True)
    for videos in (list(range(6)), [0, 0, 3, 5, 5, 5], rng.integers(6, size=6).tolist()):
        there, seen = copied(truth, videos), copied(found, videos)
        got = temporal.resampled_precision(truth, found, LEVELS)(np.array(videos))
        np.testing.assert_allclose(got, temporal.temporal_average_precision(there, seen, LEVELS).reshape(got.shape))
        share = temporal.resampled_recall(truth, found, 5, LEVELS)(np.array(videos))
        assert share == pytest.approx(temporal.average_recall(there, seen, 5, LEVELS))


def pictures(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ten squares each, found with too high scores, between as many false alarms with lower ones."""
    rng, truth, found = np.random.default_rng(0), [], []
    for _ in range(count):
        corners = np.array([(x * 100.0, y * 100.0) for x in range(5) for y in range(4)])
        boxes = np.column_stack([corners, corners + 50])
        score = np.where((np.arange(20) < 10), rng.beta(8, 2, 20), rng.beta(4, 4, 20))
        rows = np.column_stack([boxes, score, np.zeros(20)])[np.argsort(-score)]
        truth.append(np.column_stack([np.zeros(10), boxes[:10]]))
        found.append(rows)
    return truth, found


def test_scores_are_calibrated_and_the_chosen_one_counts_right_on_other_pictures():
    truth, found = pictures(40)
    chosen, intervals = choose_scores(truth, found, ("square",))
    metrics = chosen.metrics
    assert metrics["calibration_error"] < metrics["calibration_error_raw"]
    assert metrics["count_error_square"] < 0.15
    assert abs(metrics["count_total_square"]) < 0.1
    low, high = intervals["count_error_square"]
    assert low <= metrics["count_error_square"] <= high
    assert 0 < chosen.constants["confidence"] < 1
    for i in range(1, 40, 2):
        truth[i] = truth[i][:3]
    worse, _ = choose_scores(truth, found, ("square",))
    assert worse.constants == chosen.constants
    assert worse.metrics["count_error_square"] > 1 > chosen.metrics["count_error_square"]


def test_counts_are_compared_by_class_and_a_resample_of_all_has_their_precision():
    truth, found = pictures(1)
    assert choose_scores(truth, found, ("square",))[0].metrics["count_error_all"] < 1
    assert choose_scores(truth, [found[0][:0]], ("square",))[0].metrics["count_error_all"] == 1
    truth = [np.array([[0, 0, 0, 9, 9], [1, 0, 0, 9, 9]], float), np.zeros((0, 5))]
    found = [np.array([[0, 0, 9, 9, 0.9, 0]], float), np.zeros((0, 6))]
    errors, _ = count_errors(truth, found, ("a", "b", "c"))
    assert (errors["count_error_a"], errors["count_error_b"], errors["count_error_all"]) == (0, 1, 0.5)
    assert "count_error_c" not in errors
    truth, found = pictures(12)
    whole = float(box_average_precision(truth, found, (0.5,)).mean())
    assert resampled_map50(truth, found)(np.arange(12)) == whole
    assert resampled_map50(truth, found)(np.array([3, 3, 3])) != whole
