"""Last-query scores on a GPU, or in Triton's interpreter: two launches, and no map of all pairs in memory.

The first sums every row's exponentials, a part of the keys per program; the second computes the shares of a tile of
keys again and adds them up per key and per distance. Imported only where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import (
    Launch,
    Variant,
    card_for,
    power_of_two,
    precision,
    with_near_rows,
)
from services.llm_longctx.kernels.device.shapes import DECODERS
from services.llm_longctx.kernels.device.triton import LOG2E
from services.llm_longctx.kernels.dispatch import is_interpreted

MOST_PARTS = 32
"""Parts of the keys whose sums of exponentials a program of the second launch joins."""

_ROWS = 64
"""Most queries of a program; no more than the keys of a tile."""


def last_query_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """See `last_query_scores`; the sums are float32."""
    q, k = with_near_rows(q), with_near_rows(k)
    (H, b, d), (G, N) = q.shape, k.shape[:2]
    keys, distances = torch.zeros(2, H, N, dtype=torch.float32, device=q.device)
    sums, scores = _launches(q.dtype, b, d)
    tile = int(str(scores.constants["KEYS"]))
    wanted = -(-2 * card_for(q.device).processors // H)
    span = -(-N // (min(wanted, MOST_PARTS) * tile)) * tile
    parts = -(-N // span)
    rows = int(str(sums.constants["ROWS"]))
    chunks = triton.cdiv(b, rows)
    logs = torch.empty(H, parts, chunks * rows, dtype=torch.float32, device=q.device)
    strides = (*q.stride()[:2], *k.stride()[:2])
    sums((H, parts, chunks), q, k, logs, *strides, b, N, d**-0.5 * LOG2E, H // G, span)
    settings = b, N, d**-0.5 * LOG2E, H // G, parts
    scores((H, triton.cdiv(N, tile), chunks), q, k, logs, keys, distances, *strides, *settings)
    return keys, distances


def _launches(dtype: torch.dtype, b: int, d: int) -> tuple[Launch, Launch]:
    constants = {
        "D": d,
        "WIDE": power_of_two(d, 16),
        "ROWS": min(power_of_two(b, 16), _ROWS) if dtype != torch.float32 else 16,
        "KEYS": 64,
        "PRECISION": precision(dtype),
        "WIDEN": is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    }
    warps = 8 if d > 128 else 4
    sums = Launch(_sum_rows, constants, warps, 2)
    return sums, Launch(_add_up, constants | {"PARTS": MOST_PARTS}, warps, 2)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield both launches of the decoders of `DECODERS` in bfloat16, for 64 queries."""
    aligned = frozenset(("q_head", "q_row", "k_head", "k_row", "span"))
    types = {"q": "*bf16", "k": "*bf16", "logs": "*fp32", "keys_out": "*fp32", "distances": "*fp32", "scale": "fp32"}
    for name, _, d in DECODERS:
        sums, scores = _launches(torch.bfloat16, 64, d)
        yield Variant("last_query_scores", f"{name}, sums", sums, types, aligned)
        yield Variant("last_query_scores", f"{name}, scores", scores, types, aligned, copies=False)


@triton.jit
def _sum_rows(q, k, logs, q_head, q_row, k_head, k_row, b, N, scale, group, span,
              D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
              WIDEN: tl.constexpr):  # fmt: skip
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, d = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    rows = tl.load(q + head * q_head + i[:, None] * q_row + d[None, :], (i < b)[:, None] & (d < D)[None, :], 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    k += head // group * k_head
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = tl.minimum((part + 1) * span, N)
    for begin in range(part * span, end, KEYS):
        key = begin + tl.arange(0, KEYS)
        keys = tl.load(k + key[None, :] * k_row + d[:, None], (key < end)[None, :] & (d < D)[:, None], 0.0)
        if WIDEN:
            keys = keys.to(tl.float32)
        scores = tl.dot(rows, keys, input_precision=PRECISION) * scale
        scores = tl.where((key < end)[None, :] & (key[None, :] <= (N - b + i)[:, None]), scores, float("-inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        shift = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp2(most - shift) + tl.sum(tl.exp2(scores - shift[:, None]), 1)
        most = now
    sums = tl.where(total > 0, most + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(logs + (head * tl.num_programs(1) + part) * (tl.num_programs(2) * ROWS) + i, sums)


@triton.jit
def _add_up(q, k, logs, keys_out, distances, q_head, q_row, k_head, k_row, b, N, scale, group, parts,
            D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
            PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    head, begin, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * KEYS, tl.program_id(2) * ROWS
    r, c, d, part = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, WIDE), tl.arange(0, PARTS)
    i, key = first + r, begin + c
    rows = tl.load(q + head * q_head + i[:, None] * q_row + d[None, :], (i < b)[:, None] & (d < D)[None, :], 0.0)
    k += head // group * k_head
    keys = tl.load(k + key[None, :] * k_row + d[:, None], (key < N)[None, :] & (d < D)[:, None], 0.0)
    if WIDEN:
        rows, keys = rows.to(tl.float32), keys.to(tl.float32)
    scores = tl.dot(rows, keys, input_precision=PRECISION) * scale
    row = (head * parts + part) * (tl.num_programs(2) * ROWS)
    sums = tl.load(logs + row[:, None] + i[None, :], (part < parts)[:, None], float("-inf"))
    most = tl.max(sums, 0)
    shift = tl.where(most == float("-inf"), 0.0, most)
    whole = shift + tl.log2(tl.maximum(tl.sum(tl.exp2(sums - shift[None, :]), 0), 1e-30))
    seen = (key[None, :] <= (N - b + i)[:, None]) & (i < b)[:, None]
    shares = tl.where(seen, tl.exp2(scores - whole[:, None]), 0.0)
    tl.atomic_add(keys_out + head * N + key, tl.sum(shares, 0), key < N, sem="relaxed")
    # Row r turned left by r brings equal distances under each other; what is turned around belongs to another tile's.
    turned = tl.gather(shares, (c[None, :] + r[:, None]) % KEYS, 1)
    stays = (c[None, :] + r[:, None]) < KEYS
    distance = N - b + first - begin - c
    near, far = tl.sum(tl.where(stays, turned, 0.0), 0), tl.sum(tl.where(stays, 0.0, turned), 0)
    tl.atomic_add(distances + head * N + distance, near, (distance >= 0) & (distance < N), sem="relaxed")
    distance += KEYS
    tl.atomic_add(distances + head * N + distance, far, (distance >= 0) & (distance < N), sem="relaxed")
