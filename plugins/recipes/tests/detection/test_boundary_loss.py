"""The loss of BMN, term by term, against its definition."""

import pytest
import torch

from fovea_recipes.detection.bmn.loss import balanced_entropy, overlap_regression


def test_positives_and_negatives_weigh_the_same():
    found, positive = torch.full((4, 25), 0.3), torch.zeros(4, 25, dtype=torch.bool)
    positive[0, :5] = True
    expected = -0.5 * (torch.tensor(0.3).log() + torch.tensor(0.7).log())
    torch.testing.assert_close(balanced_entropy(found, positive), expected, atol=1e-4, rtol=1e-4)


def test_only_what_counts_counts():
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
