"""Virtual entries, which stand for those that left a window: running sums, and the mean they come to.

Knows tensors only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.kv_cache.allocator.page_pool import PagePool


@dataclass(frozen=True, slots=True, eq=False)
class _Mean:
    """Sum of keys and of values [2,d], of how many, in which slot of the run their mean lies, and how it counts."""

    sums: Tensor
    count: int
    slot: int
    weighted: bool


class VirtualEntries:
    """The virtual entries of one sequence, per (layer, head)."""

    def __init__(self, of: Mapping[tuple[int, int], _Mean] = MappingProxyType({})) -> None:
        self._of = dict(of)

    def heads(self) -> list[tuple[int, int]]:
        """Heads that absorb what leaves."""
        return list(self._of)

    def begin(self, at: tuple[int, int], k: Tensor, v: Tensor, count: int, *, slot: int, weighted: bool) -> None:
        """Absorb from now on, beginning with the mean `k`, `v` [d] of `count` entries in a slot of the head's run."""
        wide = torch.float64 if k.dtype == torch.float64 else torch.float32
        self._of[at] = _Mean(torch.stack((k, v)).to(wide) * count, count, slot, weighted)

    def end(self, at: tuple[int, int]) -> None:
        """Absorb no more."""
        self._of.pop(at, None)

    def absorb(self, at: tuple[int, int], pool: PagePool, start: int, k: Tensor, v: Tensor) -> None:
        """Add an entry k, v [d] that leaves, and write the new mean into its slot of the run that begins at `start`."""
        mean = self._of[at]
        sums = mean.sums + torch.stack((k, v))
        self._of[at] = mean = _Mean(sums, mean.count + 1, mean.slot, mean.weighted)
        pool.keys[start + mean.slot], pool.values[start + mean.slot] = sums / mean.count
        pool.log_weights[start + mean.slot] = math.log(mean.count) if mean.weighted else 0.0

    def copy(self) -> Self:
        """A twin that goes its own way."""
        return type(self)(self._of)
