"""Block-sparse prefill by the C++ kernel next to this file, float32 or bfloat16 on a CPU."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.native import bindings


def prefill(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr, *, sink: int = 0, window: int = 0
) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; the LSE is float32. With a window, tokens inside blocks are hidden by it, too."""
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    (Hq, T, d), (Hkv, N) = q.shape, k.shape[:2]
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(Hq, T, dtype=torch.float32)
    row_ptr, cols = blocks.row_ptr.contiguous(), blocks.cols.contiguous()
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    sizes = (blocks.heads, blocks.rows, Hq, Hkv, T, N, d, blocks.block, blocks.key_block, blocks.first, sink, window)
    bindings.block_sparse_prefill(q, k, v, strides, out, lse, row_ptr, cols, sizes)
    return out, lse
