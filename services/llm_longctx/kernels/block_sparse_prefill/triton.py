"""Block-sparse prefill on a GPU, or in Triton's interpreter: one program per tile of queries, plain pointer arithmetic.

A program's rows are queries of one row of blocks, of all heads that share its blocks, so keys are read once per group.
Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.dispatch import is_interpreted

__all__ = ["prefill"]

_TILE = 64
"""Most rows, and most keys, that a program multiplies at a time."""


def prefill(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; the LSE is float32."""
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    (Hq, T, d), (Hkv, N) = q.shape, k.shape[:2]
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(Hq, T, dtype=torch.float32)
    row_ptr, cols = blocks.row_ptr.to(q.device).contiguous(), blocks.cols.to(q.device).contiguous()
    share = Hq // blocks.heads
    rows = min(_TILE, triton.next_power_of_2(max(share * blocks.block, 16)))
    grid = (blocks.heads, blocks.rows, triton.cdiv(share * blocks.block, rows))
    _prefill[grid](
        q,
        k,
        v,
        out,
        lse,
        row_ptr,
        cols,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        T,
        N,
        d**-0.5,
        blocks.rows,
        blocks.first,
        Hq // Hkv,
        SHARE=share,
        BLOCK=blocks.block,
        KEY_BLOCK=blocks.key_block,
        D=d,
        WIDE=max(triton.next_power_of_2(d), 16),
        ROWS=rows,
        KEYS=min(_TILE, max(triton.next_power_of_2(blocks.key_block), 16)),
        WIDEN=is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    )
    return out, lse


@triton.jit  # type: ignore[untyped-decorator]
def _prefill(  # pointers and numbers alike are tensors to Triton
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    row_ptr: tl.tensor,
    cols: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    scale: tl.tensor,
    block_rows: tl.tensor,
    first: tl.tensor,
    group: tl.tensor,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    head, block_row, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # Row r of the task is query r % BLOCK of the block, of head r // BLOCK of those that share it.
    row = tile * ROWS + tl.arange(0, ROWS)
    position = (first + block_row) * BLOCK + row % BLOCK
    at = position - (N - T)
    mine = (row < SHARE * BLOCK) & (at >= 0) & (position < N)
    query_head = head * SHARE + row // BLOCK
    d = tl.arange(0, WIDE)
    rows = tl.load(q + (query_head * q_head + at * q_row)[:, None] + d[None, :], mine[:, None] & (d < D)[None, :], 0.0)
    kind = rows.dtype
    if WIDEN:
        rows = rows.to(tl.float32)
    kv = head * SHARE // group
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    begin = tl.load(row_ptr + head * (block_rows + 1) + block_row)
    end = tl.load(row_ptr + head * (block_rows + 1) + block_row + 1)
    for c in range(begin, end):
        column = tl.load(cols + c)
        for inner in range(0, KEY_BLOCK, KEYS):
            i = inner + tl.arange(0, KEYS)
            key = column * KEY_BLOCK + i
            there = (i < KEY_BLOCK) & (key < N)
            keys = tl.load(k + kv * k_head + key[None, :] * k_row + d[:, None], there[None, :] & (d < D)[:, None], 0.0)
            if WIDEN:
                keys = keys.to(tl.float32)
            scores = tl.dot(rows, keys, input_precision="ieee") * scale
            seen = there[None, :] & (key[None, :] <= position[:, None]) & mine[:, None]
            scores = tl.where(seen, scores, float("-inf"))
            now = tl.maximum(most, tl.max(scores, 1))
            # A row that has seen nothing yet has no largest score: −inf − −inf is no number.
            shift = tl.where(now == float("-inf"), 0.0, now)
            weights = tl.exp(scores - shift[:, None])
            by = tl.exp(most - shift)
            values = tl.load(
                v + kv * v_head + key[:, None] * v_row + d[None, :], there[:, None] & (d < D)[None, :], 0.0
            )
            if WIDEN:
                values = values.to(tl.float32)
            mixed = mixed * by[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            total = total * by + tl.sum(weights, 1)
            most = now
    some = total > 0
    mixed = mixed / tl.where(some, total, 1.0)[:, None]
    place = query_head * T + at
    tl.store(out + place[:, None] * D + d[None, :], mixed.to(kind), mine[:, None] & (d < D)[None, :])
    tl.store(lse + place, tl.where(some, most + tl.log(tl.where(some, total, 1.0)), float("-inf")), mine)
