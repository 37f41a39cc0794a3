"""Sliding windows of cut heads: a ring of slots at the end of a run, from which the oldest entry leaves.

Between steps a full ring has one stale slot, the hole, into which the next entry goes; so a step's entries are always
one run without gaps. Knows slots by number, not what lies in them.
"""

from copy import deepcopy
from typing import Self

import numpy as np


class SlidingWindows:
    """Sliding windows of one sequence, arrays over [L,G].

    Attributes:
        base: Slot at which the ring begins, behind what stays; -1 where there is none.
        hole: Stale slot, or -1.
    """

    def __init__(self, layers: int, kv_heads: int) -> None:
        self.base = np.full((layers, kv_heads), -1, np.int64)
        self.hole = np.full((layers, kv_heads), -1, np.int64)
        self._size = np.ones((layers, kv_heads), np.int64)
        self._oldest = np.zeros((layers, kv_heads), np.int64)
        self.any = False

    @property
    def stale(self) -> np.ndarray:
        """Heads that have a hole [L,G]."""
        return self.hole >= 0

    def set(self, layer: int, head: int, base: int | None, slide: int | None, n: int) -> None:
        """Begin a ring at slot `base` of a run of `n` entries, at most `slide` of them beyond it; None ends it.

        Raises ValueError: more entries are there than may slide.
        """
        at = (layer, head)
        self.hole[at], self._oldest[at] = -1, 0
        self.base[at] = -1 if base is None else base
        if base is not None and slide is not None:
            if n - base > slide:
                raise ValueError(f"{n - base} entries are kept in a window of {slide}")
            self._size[at] = slide + 1
        self.any = bool((self.base >= 0).any())

    def fill_holes(self) -> None:
        """New entries went into all holes."""
        self.hole[:] = -1

    def evict_oldest(self, n: np.ndarray) -> None:
        """The oldest entries of full rings leave; `n` [L,G] are the slots in use."""
        full = (self.base >= 0) & (n - self.base == self._size)
        self.hole = np.where(full, self.base + self._oldest, -1)
        self._oldest = np.where(full, (self._oldest + 1) % self._size, self._oldest)

    def capacity(self) -> np.ndarray:
        """Slots that each head with a ring will use at most [L,G]; 0 without one."""
        return np.where(self.base >= 0, self.base + self._size, 0)

    def copy(self) -> Self:
        """A twin that goes its own way."""
        return deepcopy(self)
