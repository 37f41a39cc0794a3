"""The loss of BMN: boundaries and confidence, each weighed so that rare positives count as much as the rest.

Knows maps and their labels; knows nothing about networks or data. Where there is no positive, a term is 0.
"""

import torch
from torch import Tensor

_EPS = 1e-6


def balanced_entropy(found: Tensor, positive: Tensor, among: Tensor | None = None) -> Tensor:
    """Cross-entropy in which positives and negatives weigh the same (BMN, section 4.3).

    All three are of one shape, `found` probabilities, the others bool; only what is `among` counts.
    """
    among = torch.ones_like(positive) if among is None else among
    total, hits = among.sum(), (positive & among).sum()
    if not 0 < int(hits) < int(total):
        return found.new_zeros(())
    ratio = total / hits
    terms = torch.where(
        positive, 0.5 * ratio * (found + _EPS).log(), 0.5 * ratio / (ratio - 1) * (1 - found + _EPS).log()
    )
    return -(terms * among).sum() / total


def overlap_regression(found: Tensor, overlap: Tensor, chance: Tensor) -> Tensor:
    """Half the mean squared error over high overlaps and as many drawn middle and low ones (BMN, section 4.3).

    Found map, true IoU and the uniform numbers that draw the cells are (b, s, e).
    """
    high, low = overlap > 0.7, (overlap > 0) & (overlap <= 0.3)
    middle = (overlap > 0.3) & (overlap <= 0.7)
    kept = high.float()
    for some in (middle, low):
        share = high.sum() / some.sum().clamp(min=1)
        kept = kept + (some & (chance > 1 - share)).float()
    return 0.5 * ((found - overlap).square() * kept).sum() / kept.sum().clamp(min=1)


def boundary_matching_loss(
    maps: tuple[Tensor, Tensor, Tensor], overlap: Tensor, starts: Tensor, ends: Tensor, chance: Tensor
) -> Tensor:
    """TEM(start) + TEM(end) + 10 · regression + classification, as a scalar.

    Maps are confidence (b, 2, s, e), start and end (b, t); their labels true IoU (b, s, e), starts and ends (b, t) in
    0..1. `chance` are uniform numbers (b, s, e).
    """
    confidence, start, end = maps
    proposals = torch.ones_like(overlap, dtype=torch.bool).triu()
    return (
        balanced_entropy(start, starts > 0.5)
        + balanced_entropy(end, ends > 0.5)
        + 10 * overlap_regression(confidence[:, 0], overlap, chance)
        + balanced_entropy(confidence[:, 1], overlap > 0.9, proposals.expand_as(overlap))
    )
