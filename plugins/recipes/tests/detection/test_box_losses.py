"""Losses of detectors: golden items, terms against their definitions, who gets which cell."""

import numpy as np
import pytest
import torch

from fovea_recipes.detection.bmn.loss import balanced_entropy, overlap_regression
from fovea_recipes.detection.losses import assign, dual_detection_loss
from plugins.recipes.tests.golden_files import read


def _golden() -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, dict[str, np.ndarray]]:
    golden = read("yolo9tr-loss.arrays")  # inputs are kept in 16 bits: half the bytes, and within the tolerance
    main, auxiliary = ([torch.from_numpy(golden[f"raw_{b}_{i}"]).float() for i in range(3)] for b in ("main", "aux"))
    return main, auxiliary, torch.from_numpy(golden["targets"]), golden


def test_items_and_total_equal_the_published_ones():
    main, auxiliary, targets, golden = _golden()
    total, items = dual_detection_loss(main, auxiliary, targets, 7)
    np.testing.assert_allclose(items.numpy(), golden["items_box_cls_dfl"], rtol=2e-4, atol=1e-3)
    assert total.item() == pytest.approx(golden["loss"][0], rel=2e-4, abs=1e-3)


def test_pictures_without_objects_have_a_finite_loss_of_classes_alone():
    main, auxiliary, _, _ = _golden()
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


def test_positives_and_negatives_weigh_the_same_and_only_what_counts_counts():
    found, positive = torch.full((4, 25), 0.3), torch.zeros(4, 25, dtype=torch.bool)
    positive[0, :5] = True
    expected = -0.5 * (torch.tensor(0.3).log() + torch.tensor(0.7).log())
    torch.testing.assert_close(balanced_entropy(found, positive), expected, atol=1e-4, rtol=1e-4)
    found, positive = torch.rand(6, 6), torch.rand(6, 6) > 0.5
    among = torch.rand(6, 6) > 0.3
    torch.testing.assert_close(
        balanced_entropy(found, positive, among), balanced_entropy(found[among], positive[among])
    )


@pytest.mark.parametrize("positive", [torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)])
def test_a_term_without_positives_or_negatives_is_skipped(positive):
    assert balanced_entropy(torch.rand(8, requires_grad=True), positive) == 0


def test_high_overlaps_are_all_kept_and_others_drawn_to_their_number():
    overlap = torch.tensor([0.9] * 10 + [0.5] * 20 + [0.1] * 40 + [0.0] * 30).reshape(1, 10, 10)
    chance = torch.zeros(1, 10, 10)
    assert overlap_regression(torch.zeros_like(overlap), overlap, chance) == pytest.approx(0.5 * 0.81)
    all_drawn = overlap_regression(torch.zeros_like(overlap), overlap, torch.ones_like(chance))
    assert all_drawn == pytest.approx(0.5 * (10 * 0.81 + 20 * 0.25 + 40 * 0.01) / 70)
    generator = torch.Generator().manual_seed(0)
    many = overlap.repeat(400, 1, 1)
    drawn = overlap_regression(torch.zeros_like(many), many, torch.rand(many.shape, generator=generator))
    assert drawn == pytest.approx(0.5 * (0.81 + 0.25 + 0.01) / 3, abs=0.01)
