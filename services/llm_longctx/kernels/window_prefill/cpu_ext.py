"""Sink-and-window prefill by the C++ kernel of block-sparse prefill; unseen blocks are left out."""

from functools import lru_cache

import torch
from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.block_sparse_prefill import cpu_ext

BLOCK = 64


def prefill(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    """See `window_prefill`."""
    blocks = _seen(k.shape[0], k.shape[1], q.shape[1], sink, window)
    return cpu_ext.prefill(q, k, v, blocks, sink=sink, window=window)


@lru_cache(maxsize=64)
def _seen(heads: int, entries: int, queries: int, sink: int, window: int) -> BlockCsr:
    """Blocks of entries that some query of a row sees."""
    first, end = (entries - queries) // BLOCK, -(-entries // BLOCK)
    rows, columns = torch.arange(first, end)[:, None] * BLOCK, torch.arange(end) * BLOCK
    begins = rows.clamp(min=entries - queries)
    seen = (columns < sink) | (columns + BLOCK - 1 > begins - window)
    return BlockCsr.from_mask(seen.expand(heads, -1, -1), BLOCK, first=first)
