"""Parts of Triton kernels over runs of packed pages: where a run begins, and which of a tile's entries it has.

Imported only where Triton is installed. Knows runs; knows nothing about codes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def open_run(start, lengths, problem, PAGE: tl.constexpr):
    """A problem's first page, how many entries before the run that page holds, and entries from the page's begin."""
    first, n = tl.load(start + problem), tl.load(lengths + problem)
    skip = (first % PAGE).to(tl.int32)
    return first // PAGE, skip, tl.where(n > 0, n + skip, 0).to(tl.int32)


@triton.jit
def hide(weights, begin, skip, end, weighted_end, KEYS: tl.constexpr, WEIGHTED: tl.constexpr):
    """Additions to the scores of a tile, in base 2: log-weights [KEYS], and −inf outside of the run."""
    position = begin + tl.arange(0, KEYS)
    there = (position >= skip) & (position < end)
    added = tl.zeros((KEYS,), tl.float32)
    if WEIGHTED:
        added = tl.load(weights + position, there & (position < weighted_end), 0.0) * 1.4426950408889634
    return tl.where(there, added, float("-inf"))
