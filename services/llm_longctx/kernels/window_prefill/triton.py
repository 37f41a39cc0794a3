"""Sink-and-window prefill on a GPU, or in Triton's interpreter: a tile of queries reads the sinks, then its window.

No mask and no list of blocks is made: a program computes which keys its queries see. A program's rows are queries of
all heads of a group, so keys are read once per group. Imported only where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, power_of_two, with_near_rows
from services.llm_longctx.kernels.device.shapes import DECODERS
from services.llm_longctx.kernels.device.tiles import Tiles, prefill_tiles
from services.llm_longctx.kernels.device.triton import LN2, LOG2E, absorb, normalize


def prefill(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    """See `window_prefill`; the LSE is float32."""
    q, k, v = (with_near_rows(x) for x in (q, k, v))
    (H, T, d), (G, N) = q.shape, k.shape[:2]
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(H, T, dtype=torch.float32)
    share = H // G
    tiles = _tiles(card_for(q.device), q.dtype, d, share * T, N)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    settings = T, N, d**-0.5 * LOG2E, min(sink, N), min(window, N)
    _launch(tiles, d, share)((G, triton.cdiv(share * T, tiles.rows)), q, k, v, out, lse, *strides, *settings)
    return out, lse


def _tiles(card: GpuCard, dtype: torch.dtype, d: int, rows: int, keys: int) -> Tiles:
    """Choose tiles; masks take registers of wide heads, which have fewer keys for it."""
    return prefill_tiles(card, dtype, d, rows, keys if d <= 128 else min(keys, 32))


def _launch(tiles: Tiles, d: int, share: int) -> Launch:
    constants = {"SHARE": share, "D": d, "WIDE": power_of_two(d, 16), **tiles.constants()}
    return Launch(_window, constants, tiles.warps, tiles.stages)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield the decoders of `DECODERS` in bfloat16."""
    aligned = frozenset(("q_head", "q_row", "k_head", "k_row", "v_head", "v_row"))
    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"lse": "*fp32", "scale": "fp32"}
    for name, G, d in DECODERS:
        launch = _launch(_tiles(card, torch.bfloat16, d, 4096, 4096), d, G)
        yield Variant("window_prefill", f"{name}, bf16", launch, types, aligned)


@triton.jit
def _window(q, k, v, out, lse, q_head, q_row, k_head, k_row, v_head, v_row, T, N, scale, sink, window,
            SHARE: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
            PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    kv, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    # Row r is a query of head r % SHARE of the group: the rows of a tile are neighbours in the sequence.
    row = tile * ROWS + tl.arange(0, ROWS)
    at = row // SHARE
    head = kv * SHARE + row % SHARE
    position = N - T + at
    before = position - window
    mine = at < T
    d = tl.arange(0, WIDE)
    rows = tl.load(q + (head * q_head + at * q_row)[:, None] + d[None, :], mine[:, None] & (d < D)[None, :], 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    k += kv * k_head
    v += kv * v_head
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    first = N - T + tile * ROWS // SHARE
    end = tl.minimum(N - T + (tile * ROWS + ROWS - 1) // SHARE + 1, N)
    # Tiles of the sinks that lie before the window's first tile, then those of the window.
    near = tl.maximum(first - window + 1, 0) // KEYS * KEYS
    far = tl.minimum(tl.cdiv(tl.minimum(sink, end), KEYS) * KEYS, near)
    for step in range(0, tl.cdiv(far + end - near, KEYS)):
        begin = tl.where(step * KEYS < far, step * KEYS, step * KEYS - far + near)
        key = begin + tl.arange(0, KEYS)
        there = key < end
        keys = tl.load(k + key[None, :] * k_row + d[:, None], there[None, :] & (d < D)[:, None], 0.0)
        values = tl.load(v + key[:, None] * v_row + d[None, :], there[:, None] & (d < D)[None, :], 0.0)
        if WIDEN:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        scores = tl.dot(rows, keys, input_precision=PRECISION) * scale
        # Rows beyond the last query see something, too; they are not stored.
        seen = (key[None, :] <= position[:, None]) & ((key < sink)[None, :] | (key[None, :] > before[:, None]))
        scores = tl.where(seen, scores, float("-inf"))
        most, total, mixed = absorb(scores, values, most, total, mixed, PRECISION)
    mixed, logs = normalize(most, total, mixed)
    place = head * T + at
    tl.store(out + place[:, None] * D + d[None, :], mixed.to(out.dtype.element_ty), mine[:, None] & (d < D)[None, :])
    tl.store(lse + place, logs * LN2, mine)
