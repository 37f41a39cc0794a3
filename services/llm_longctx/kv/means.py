"""Virtual entries that stand for those that left a window: running sums, and the mean they come to.

Knows tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.kv.pool import PagePool

__all__ = ["Means"]


class Means:
    """Sums of keys and values that left, per (layer, head), and the slot in which each mean lies."""

    def __init__(self, of: Mapping[tuple[int, int], tuple[Tensor, int, bool]] = MappingProxyType({})) -> None:
        self._of = dict(of)

    def heads(self) -> list[tuple[int, int]]:
        """Heads that absorb what leaves."""
        return list(self._of)

    def begin(self, at: tuple[int, int], k: Tensor, v: Tensor, count: int, *, weighted: bool) -> None:
        """Absorb from now on, beginning with the mean `k`, `v` [d] of `count` entries."""
        wide = torch.float64 if k.dtype == torch.float64 else torch.float32
        self._of[at] = (torch.stack((k, v)).to(wide) * count, count, weighted)

    def end(self, at: tuple[int, int]) -> None:
        """Absorb no more."""
        self._of.pop(at, None)

    def absorb(self, at: tuple[int, int], pool: PagePool, leaving: int, slot: int) -> None:
        """Add the entry in slot `leaving`, and write the new mean to `slot`."""
        sums, count, weighted = self._of[at]
        sums, count = sums + torch.stack((pool.keys[leaving], pool.values[leaving])), count + 1
        self._of[at] = (sums, count, weighted)
        pool.keys[slot], pool.values[slot] = sums / count
        pool.log_weights[slot] = math.log(count) if weighted else 0.0

    def copy(self) -> Self:
        """A twin that goes its own way."""
        return type(self)(self._of)
