"""Merge of attention parts on a GPU, or in Triton's interpreter: one launch for up to four parts.

Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, power_of_two
from services.llm_longctx.kernels.device.shapes import DECODERS

MOST = 4
"""Parts of a launch; more are merged by fours."""


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """See `merge`; the LSE is float32."""
    while len(parts) > MOST:
        parts = [merge(parts[:MOST]), *parts[MOST:]]
    outs, logs = ([x.contiguous() for x in side] for side in zip(*parts, strict=True))
    out, lse = torch.empty_like(outs[0]), torch.empty_like(logs[0], dtype=torch.float32)
    if not out.numel():
        return out, lse
    fill = MOST - len(parts)
    launch = _launch(out.shape[-1], len(parts))
    grid = (triton.cdiv(lse.numel(), int(str(launch.constants["ROWS"]))),)
    launch(grid, *outs, *outs[:1] * fill, *logs, *logs[:1] * fill, out, lse, lse.numel())
    return out, lse


def _launch(d: int, parts: int) -> Launch:
    wide = power_of_two(d)
    return Launch(_merge, {"D": d, "WIDE": wide, "ROWS": max(2048 // wide, 1), "PARTS": parts})


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield two and four parts for the decoders of `DECODERS`, in bfloat16."""
    names = [f"{side}_{i}" for side in ("out", "lse") for i in range(MOST)]
    types = {name: "*bf16" if name.startswith("out") else "*fp32" for name in names} | {"out": "*bf16", "lse": "*fp32"}
    for name, _, d in DECODERS:
        for parts in (2, 4):
            launch = _launch(d, parts)
            yield Variant(
                "merge_lse", f"{name}, {parts} parts", launch, types, matrix=False, copies=False, vectorized=0.7
            )


@triton.jit
def _add(out, lse, row, there, d, most, total, mixed, D: tl.constexpr):
    logs = tl.load(lse + row, there, float("-inf")).to(tl.float32)
    held = tl.load(out + row[:, None] * D + d[None, :], there[:, None] & (d < D)[None, :], 0.0).to(tl.float32)
    now = tl.maximum(most, logs)
    shift = tl.where(now == float("-inf"), 0.0, now)
    share, by = tl.exp(logs - shift), tl.exp(most - shift)
    return now, total * by + share, mixed * by[:, None] + held * share[:, None]


@triton.jit
def _merge(out_0, out_1, out_2, out_3, lse_0, lse_1, lse_2, lse_3, out, lse, rows,
           D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    there = row < rows
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    most, total, mixed = _add(out_0, lse_0, row, there, d, most, total, mixed, D)
    if PARTS > 1:
        most, total, mixed = _add(out_1, lse_1, row, there, d, most, total, mixed, D)
    if PARTS > 2:
        most, total, mixed = _add(out_2, lse_2, row, there, d, most, total, mixed, D)
    if PARTS > 3:
        most, total, mixed = _add(out_3, lse_3, row, there, d, most, total, mixed, D)
    some = total > 0
    safe = tl.where(some, total, 1.0)
    inside = there[:, None] & (d < D)[None, :]
    tl.store(out + row[:, None] * D + d[None, :], (mixed / safe[:, None]).to(out.dtype.element_ty), inside)
    tl.store(lse + row, tl.where(some, most + tl.log(safe), float("-inf")), there)
