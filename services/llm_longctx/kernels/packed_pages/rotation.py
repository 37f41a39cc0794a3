"""Rotation of rotated pages, and the levels that turned channels are rounded to; `rotated_page.h` has the same.

After TurboQuant (Zandieh et al. 2025, arXiv 2504.19874): R = H · diag(s) with H a Walsh–Hadamard matrix over √d and s
random signs. Channels of √d · R x / ‖x‖ are close to standard normal whatever x is, so one table of levels fits all.
Where d is not a power of two, H has a block per binary digit of d, the largest first (ours).
"""

from functools import lru_cache

import torch
from torch import Tensor

_HALVES = {3: (0.2451, 0.7560, 1.3439, 2.1519), 4: (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326)}

LEVELS: dict[int, tuple[float, ...]] = {bits: (*(-x for x in reversed(half)), *half) for bits, half in _HALVES.items()}
"""Lloyd–Max levels of a standard normal variable by bits, ascending; a code counts them."""


@lru_cache(maxsize=16)
def hadamard(d: int, device: torch.device) -> Tensor:
    """Orthonormal symmetric matrix [d,d] float32."""
    blocks = []
    for digit in range(d.bit_length() - 1, -1, -1):
        if d >> digit & 1:
            block = torch.ones(1, 1)
            for _ in range(digit):
                block = torch.cat((torch.cat((block, block), 1), torch.cat((block, -block), 1))) * 0.5**0.5
            blocks.append(block)
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]  # torch has no types for it
    return matrix.to(device)


def signs(heads: Tensor, d: int) -> Tensor:
    """Signs [m,d] float32 of heads [m] by their numbers: a hash of number and channel, 32 bits wide."""
    x = heads.long()[:, None] * 0x9E3779B9 + torch.arange(d, device=heads.device) * 0x85EBCA6B
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = x & 0xFFFFFFFF
        x = (x ^ x >> shift) * factor
    return 1.0 - 2.0 * (x & 1).float()


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Rotate vectors [m,…,d] by signs [m,d], in float32."""
    by = by.view(len(by), *[1] * (x.dim() - 2), x.shape[-1])
    return (x.float() * by) @ hadamard(x.shape[-1], x.device)


def rotate_back(x: Tensor, by: Tensor) -> Tensor:
    """Undo `rotate`."""
    by = by.view(len(by), *[1] * (x.dim() - 2), x.shape[-1])
    return (x.float() @ hadamard(x.shape[-1], x.device)) * by
