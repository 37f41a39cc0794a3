"""Pooled features: what a whole picture is to a network, as one row of numbers. Knows tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pool_levels(levels: Sequence[Tensor]) -> Tensor:
    """Mean of each channel of each level: (n, c_1, h, w), (n, c_2, h', w'), … → (n, c_1 + c_2 + …)."""
    return torch.cat([level.mean(dim=(2, 3)) for level in levels], dim=1)
