"""The structure losses of PraNet and PraNet-V2 (weighted IoU and cross-entropy, specially weighted at edges).

Knows logits and soft masks; knows nothing about networks or data.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["paper", "released"]
"""`paper` weighs the cross-entropy per pixel; in `released` the weights cancel, as in the published training code."""


def edge_weight(mask: Tensor) -> Tensor:
    """Weight of each pixel (n, 1, h, w): 1 far from edges, up to 6 at thin structures (PraNet, section 2.4).

    The 31x31 mean is taken along rows and then along columns: the same number for a fifteenth of the work, and more
    than half of a training step on a CPU otherwise.
    """
    rows = F.avg_pool2d(mask, (1, 31), stride=1, padding=(0, 15))
    return 1 + 5 * (F.avg_pool2d(rows, (31, 1), stride=1, padding=(15, 0)) - mask).abs()


def structure_loss(logits: Tensor, mask: Tensor, form: Form = "paper", weight: Tensor | None = None) -> Tensor:
    """Weighted IoU plus binary cross-entropy of one map, as a scalar (PraNet, section 2.4).

    Args:
        logits: Raw map (n, 1, h, w).
        mask: Soft mask (n, 1, h, w) in 0..1.
        form: `paper`, or `released` for the loss that the official code computes.
        weight: `edge_weight(mask)`, where the caller has it already.
    """
    weight = edge_weight(mask) if weight is None else weight
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    bce = entropy.mean() if form == "released" else (weight * entropy).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
    found = torch.sigmoid(logits)
    overlap = (found * mask * weight).sum(dim=(2, 3))
    union = ((found + mask) * weight).sum(dim=(2, 3)) - overlap
    return (bce + 1 - (overlap + 1) / (union + 1)).mean()


def deep_supervision(maps: Sequence[Tensor], mask: Tensor, form: Form = "paper") -> Tensor:
    """Total loss of PraNet: the sum over its four maps (5, 4, 3, 2)."""
    weight = edge_weight(mask)
    return torch.stack([structure_loss(logits, mask, form, weight) for logits in maps]).sum()


def dual_supervision(maps: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Total loss of PraNet-V2: foreground maps against the mask, background maps against its complement.

    Maps are the foreground's p2..p5, then the background's; all are (n, 1, h, w), the mask soft.
    """
    half = len(maps) // 2
    background = [F.binary_cross_entropy_with_logits(logits, 1 - mask) for logits in maps[half:]]
    return deep_supervision(maps[:half], mask) + 0.8 * torch.stack(background).sum()
