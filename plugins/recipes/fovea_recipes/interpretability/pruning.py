"""Magnitude pruning: the smallest weights of each matrix become zero, by share or N:M.

Knows tensors; knows no model and no claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fovea.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class PruningPattern:
    """Pruning pattern: a share of each matrix, or all but `n` of every `m` inputs.

    Attributes:
        share: Share of zeros.
        n, m: For N:M; both 0 where the share is unstructured.
    """

    share: float
    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `0.7`, or `2:4`; `InvalidOption` if it is neither."""
        first, colon, second = text.partition(":")
        try:
            if not colon:
                share = float(text)
                if 0 < share < 1:
                    return cls(share)
            elif 0 < int(first) < int(second):
                return cls(1 - int(first) / int(second), int(first), int(second))
        except ValueError:
            pass
        detail = f"{text!r} is not a pattern."
        raise InvalidOption(
            detail, hint="Say a share between 0 and 1, such as 0.7, or N:M, such as 2:4.", field="patterns"
        )


def prune(state: Mapping[str, Tensor], pattern: PruningPattern) -> dict[str, Tensor]:
    """Return the state with zeros in its matrices; tensors of fewer than two dimensions stay.

    N of M runs over the inputs of each output (the flattened rest of a convolution's weight); matrices whose inputs M
    does not divide stay dense.
    """
    return {name: _prune_matrix(tensor, pattern) if tensor.dim() >= 2 else tensor for name, tensor in state.items()}


def _prune_matrix(weight: Tensor, pattern: PruningPattern) -> Tensor:
    flat = weight.flatten(1)
    if not pattern.m:
        count = round(pattern.share * flat.numel())
        sizes = flat.abs().flatten()
        limit = sizes.kthvalue(count).values if count else -1.0
        equal, smaller = sizes == limit, sizes < limit
        kept = ~smaller & (~equal | (equal.cumsum(0) > count - smaller.sum()))  # of equal ones the first go
        return (flat.flatten() * kept).view_as(weight)
    if flat.shape[1] % pattern.m:
        return weight
    groups = flat.view(len(flat), -1, pattern.m)
    most = groups.abs().argsort(dim=-1, descending=True, stable=True)[..., : pattern.n]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, most, value=True)
    return (groups * kept).view_as(weight)


def count_stored_bytes(state: Mapping[str, Tensor], itemsize: int = 2) -> tuple[int, int]:
    """Count the bytes of the non-zeros, and of one bit per position that says where they are; matrices only."""
    matrices = [tensor for tensor in state.values() if tensor.dim() >= 2]
    values = sum(int(tensor.count_nonzero()) for tensor in matrices) * itemsize
    return values, sum(-(-tensor.numel() // 8) for tensor in matrices)


def sparsity_of(tensor: Tensor) -> float:
    """Share of exact zeros in a tensor; 0 of an empty one."""
    return float((tensor == 0).sum()) / max(tensor.numel(), 1)


def sparsity_by_layer(state_dict: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of zeros per tensor with two dimensions or more (biases and norms are left out)."""
    return {name: sparsity_of(tensor) for name, tensor in state_dict.items() if len(tensor.shape) >= 2}


def verify_nm(tensor: Tensor, n: int, m: int) -> bool:
    """Whether every group of m along the last axis has at most n non-zeros; False where m does not divide the axis."""
    width = tensor.shape[-1]
    if m <= 0 or width % m:
        return False
    groups = (tensor != 0).reshape(-1, m).sum(-1)
    return bool((groups <= n).all())
