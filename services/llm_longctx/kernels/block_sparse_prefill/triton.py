"""Block-sparse prefill on a GPU, or in Triton's interpreter: one program per tile of queries, plain pointer arithmetic.

A program's rows are queries of one row of blocks, of all heads that share its blocks, so keys are read once per group.
Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, power_of_two, with_near_rows
from services.llm_longctx.kernels.device.shapes import DECODERS
from services.llm_longctx.kernels.device.tiles import Tiles, prefill_tiles
from services.llm_longctx.kernels.device.triton import LN2, LOG2E, absorb, normalize


def prefill(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; the LSE is float32."""
    q, k, v = (with_near_rows(x) for x in (q, k, v))
    (Hq, T, d), (Hkv, N) = q.shape, k.shape[:2]
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(Hq, T, dtype=torch.float32)
    row_ptr, cols = blocks.row_ptr.to(q.device).contiguous(), blocks.cols.to(q.device).contiguous()
    share = Hq // blocks.heads
    tiles = prefill_tiles(card_for(q.device), q.dtype, d, share * blocks.block, blocks.key_block)
    launch = _launch(tiles, d, share, blocks.block, blocks.key_block)
    launch(
        (blocks.rows, blocks.heads, triton.cdiv(share * blocks.block, tiles.rows)),
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
        d**-0.5 * LOG2E,
        blocks.rows,
        blocks.first,
        Hq // Hkv,
    )
    return out, lse


def _launch(tiles: Tiles, d: int, share: int, block: int, key_block: int) -> Launch:
    constants = {
        "SHARE": share, "BLOCK": block, "KEY_BLOCK": key_block, "D": d, "WIDE": power_of_two(d, 16),
        **tiles.constants(),
    }  # fmt: skip
    return Launch(_prefill, constants, tiles.warps, tiles.stages)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield prefill with blocks of 64 tokens that a group of heads shares, and one in float32."""
    strides = frozenset(("q_head", "q_row", "k_head", "k_row", "v_head", "v_row"))
    types = {"lse": "*fp32", "row_ptr": "*i32", "cols": "*i32", "scale": "fp32"}
    for name, G, d in DECODERS:
        for dtype in (torch.bfloat16, torch.float32):
            kind = "bf16" if dtype == torch.bfloat16 else "fp32"
            launch = _launch(prefill_tiles(card, dtype, d, G * 64, 64), d, G, 64, 64)
            pointers = dict.fromkeys(("q", "k", "v", "out"), f"*{kind}")
            yield Variant("block_sparse_prefill", f"{name}, {kind}", launch, types | pointers, strides)


@triton.jit
def _prefill(q, k, v, out, lse, row_ptr, cols, q_head, q_row, k_head, k_row, v_head, v_row, T, N, scale, block_rows,
             first, group,
             SHARE: tl.constexpr, BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
             ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    block_row, head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # Row r of the task is query r % BLOCK of the block, of head r // BLOCK of those that share it.
    row = tile * ROWS + tl.arange(0, ROWS)
    position = (first + block_row) * BLOCK + row % BLOCK
    at = position - (N - T)
    mine = (row < SHARE * BLOCK) & (at >= 0) & (position < N)
    query_head = (head * SHARE + row // BLOCK).to(tl.int64)
    d = tl.arange(0, WIDE)
    rows = tl.load(q + (query_head * q_head + at * q_row)[:, None] + d[None, :], mine[:, None] & (d < D)[None, :], 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    kv = (head * SHARE // group).to(tl.int64)
    k += kv * k_head
    v += kv * v_head
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
            keys = tl.load(k + key[None, :] * k_row + d[:, None], there[None, :] & (d < D)[:, None], 0.0)
            values = tl.load(v + key[:, None] * v_row + d[None, :], there[:, None] & (d < D)[None, :], 0.0)
            if WIDEN:
                keys, values = keys.to(tl.float32), values.to(tl.float32)
            scores = tl.dot(rows, keys, input_precision=PRECISION) * scale
            seen = there[None, :] & (key[None, :] <= position[:, None]) & mine[:, None]
            scores = tl.where(seen, scores, float("-inf"))
            most, total, mixed = absorb(scores, values, most, total, mixed, PRECISION)
    mixed, logs = normalize(most, total, mixed)
    place = query_head * T + at
    tl.store(out + place[:, None] * D + d[None, :], mixed.to(out.dtype.element_ty), mine[:, None] & (d < D)[None, :])
    tl.store(lse + place, logs * LN2, mine)
