"""Products with few-bit matrices on a GPU, or in Triton's interpreter: the packed matrix is read where it lies.

A program multiplies some strips of 16 rows of the matrix side by side; codes are exact in bfloat16, and a
group's scale and minimum come after its product. Long rows are cut into parts of columns, which the program that comes
last adds up in order. Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, counters, power_of_two, precision
from services.llm_longctx.kernels.device.shapes import MODELS
from services.llm_longctx.kernels.dispatch import is_interpreted
from services.llm_longctx.kernels.quantized_linear.packing import STRIP, PackedMatrix
from shared.lm.quantization import GROUP

_MOST_ROWS = 64
"""Rows of x of a program."""

_LEAST_GROUPS = 16
"""Groups of columns of a part: fewer are read before their pipeline is full."""


def multiply(
    x: Tensor, layers: Sequence[tuple[PackedMatrix, Tensor | None]], *, gated: bool = False, parts: int | None = None
) -> list[Tensor]:
    """See `multiply`; x is not rounded."""
    x = x.contiguous()
    totals = _sum_groups(x)
    if gated and layers[0][0].bits == layers[1][0].bits:
        return [_product(x, totals, layers[0], layers[1], parts)]
    if gated:
        gate, up = (_product(x, totals, layer, None, parts) for layer in layers)
        return [functional.silu(gate) * up]
    return [_product(x, totals, layer, None, parts) for layer in layers]


def _sum_groups(x: Tensor) -> Tensor:
    """Sums of x over each group of columns, float32 [groups,rows]: a matrix's minimum is multiplied with them."""
    K = x.shape[-1]
    padded = functional.pad(x.reshape(-1, K), (0, -K % GROUP)) if K % GROUP else x.reshape(-1, K)
    return padded.view(len(padded), -1, GROUP).sum(-1, dtype=torch.float32).t().contiguous()


def _product(
    x: Tensor,
    totals: Tensor,
    layer: tuple[PackedMatrix, Tensor | None],
    other: tuple[PackedMatrix, Tensor | None] | None,
    parts: int | None,
) -> Tensor:
    (matrix, bias), K = layer, x.shape[-1]
    (second, second_bias) = other or layer
    M, N = x.numel() // K, matrix.rows
    out = x.new_empty((*x.shape[:-1], N))
    if not M:
        return out
    launch = _launch(
        card_for(x.device),
        x.dtype,
        M,
        matrix.bits,
        K,
        gated=other is not None,
        biased=(bias is not None, second_bias is not None),
    )
    rows, strips = int(str(launch.constants["ROWS"])), int(str(launch.constants["STRIPS"]))
    grid = triton.cdiv(matrix.data.shape[0], strips), triton.cdiv(M, rows)
    groups = matrix.data.shape[1]
    if parts is None:
        wanted = -(-2 * card_for(x.device).processors // (grid[0] * grid[1]))
        parts = max(min(wanted, groups // _LEAST_GROUPS), 1)
    span = triton.cdiv(groups, parts)
    parts = triton.cdiv(groups, span)
    tile = rows * strips * STRIP
    sums = torch.empty(grid[0] * grid[1] * parts * tile * 2, dtype=torch.float32, device=x.device) if parts > 1 else x
    launch(
        (*grid, parts),
        x,
        totals,
        matrix.data.view(torch.int32),
        matrix.data.view(torch.float16),
        second.data.view(torch.int32),
        second.data.view(torch.float16),
        x if bias is None else bias,
        x if second_bias is None else second_bias,
        out,
        sums,
        counters(x.device, grid[0] * grid[1]),
        M,
        N,
        matrix.data.shape[0],
        span,
    )
    return out


def _launch(
    card: GpuCard, dtype: torch.dtype, M: int, bits: int, K: int, *, gated: bool, biased: tuple[bool, bool]
) -> Launch:
    most = _MOST_ROWS if bits == 8 or card.capability < 100 else _MOST_ROWS // 2
    constants = {
        "BITS": bits,
        "K": K,
        "GROUPS": -(-K // GROUP),
        "GROUP": GROUP,
        "STRIP": STRIP,
        "STRIPS": 8 if card.capability < 100 else 4,
        "ROWS": min(power_of_two(M, 16), most if dtype != torch.float32 else 16),
        "GATED": gated,
        "BIASED": biased[0],
        "SECOND_BIASED": biased[1],
        "PRECISION": precision(dtype),
        "WIDEN": is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    }
    return Launch(_multiply, constants, 4, 4 if not gated else 3)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield both widths of codes, for batches of 16 to 64 rows, and a gated pair."""
    types = dict.fromkeys(("x", "bias", "second_bias", "out"), "*bf16") | {
        "sums": "*fp32",
        "totals": "*fp32",
        "arrived": "*i32",
    }
    types |= dict.fromkeys(("words", "second_words"), "*i32") | dict.fromkeys(("halves", "second_halves"), "*fp16")
    for model in MODELS[:2]:
        for bits in (8, 4):
            for M, gated in ((16, False), (16, True), (32, False), (64, False)):
                launch = _launch(card, torch.bfloat16, M, bits, model.width, gated=gated, biased=(False, False))
                shape = f"{model.name}, {bits} bits, {M} rows{', gated' if gated else ''}"
                yield Variant("quantized_linear", shape, launch, types, copies=False, vectorized=0.8)


@triton.jit
def _multiply(
    x,
    totals,
    words,
    halves,
    second_words,
    second_halves,
    bias,
    second_bias,
    out,
    sums,
    arrived,
    M,
    N,
    strips,
    span,
    BITS: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    SECOND_BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    OUT: tl.constexpr = STRIPS * STRIP
    HALF: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    block, chunk, part, parts = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    strip, m, column = block * STRIPS + tl.arange(0, STRIPS), chunk * ROWS + tl.arange(0, ROWS), tl.arange(0, GROUP)
    acc = tl.zeros((OUT, ROWS), tl.float32)
    other = tl.zeros((OUT, ROWS), tl.float32)
    for group in range(part * span, tl.minimum((part + 1) * span, GROUPS)):
        k = group * GROUP + column
        rows = tl.load(x + m[None, :] * K + k[:, None], (m < M)[None, :] & (k < K)[:, None], 0.0)
        if WIDEN:
            rows = rows.to(tl.float32)
        total = tl.load(totals + group * M + m, m < M, 0.0)
        acc += _group(words, halves, strip, strips, group, rows, total, BITS, GROUPS, STRIP, STRIPS, PRECISION, HALF)
        if GATED:
            other += _group(
                second_words,
                second_halves,
                strip,
                strips,
                group,
                rows,
                total,
                BITS,
                GROUPS,
                STRIP,
                STRIPS,
                PRECISION,
                HALF,
            )
    n = block * OUT + tl.arange(0, OUT)
    inside = (n < N)[:, None] & (m < M)[None, :]
    if parts > 1:
        tile: tl.constexpr = OUT * ROWS
        cell = tl.arange(0, OUT)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        task = block * tl.num_programs(1) + chunk
        mine = sums + (task * parts + part).to(tl.int64) * (2 * tile)
        tl.store(mine + cell, acc)
        if GATED:
            tl.store(mine + tile + cell, other)
        # All threads' stores come before the one thread's release.
        tl.debug_barrier()
        if tl.atomic_add(arrived + task, 1, sem="acq_rel") == parts - 1:
            tl.store(arrived + task, 0)
            acc = tl.zeros((OUT, ROWS), tl.float32)
            other = tl.zeros((OUT, ROWS), tl.float32)
            for p in range(0, parts):
                theirs = sums + (task * parts + p).to(tl.int64) * (2 * tile)
                acc += tl.load(theirs + cell, cache_modifier=".cg")
                if GATED:
                    other += tl.load(theirs + tile + cell, cache_modifier=".cg")
            _store(acc, other, bias, second_bias, out, n, m, N, inside, BIASED, SECOND_BIASED, GATED)
    else:
        _store(acc, other, bias, second_bias, out, n, m, N, inside, BIASED, SECOND_BIASED, GATED)


@triton.jit
def _group(
    words,
    halves,
    strip,
    strips,
    group,
    rows,
    total,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,
):
    """One group of 32 columns: its codes times x, scaled, and its minimum times the sum of x."""
    PER_WORD: tl.constexpr = 32 // BITS
    LANES: tl.constexpr = 32 // PER_WORD * STRIP
    BYTES: tl.constexpr = LANES * 4 + (64 if BITS == 4 else 32)
    OUT: tl.constexpr = STRIPS * STRIP
    lane, r, j = tl.arange(0, LANES), tl.arange(0, STRIP), tl.arange(0, PER_WORD)
    there = (strip < strips)[:, None]
    place = (strip.to(tl.int64) * GROUPS + group) * BYTES
    held = tl.load(words + (place // 4)[:, None] + lane[None, :], there, 0)
    # [strip, four or eight columns, row] → [strip, row, word], whose codes are neighbours.
    held = tl.reshape(tl.permute(tl.reshape(held, (STRIPS, LANES // STRIP, STRIP)), (0, 2, 1)), (OUT, LANES // STRIP))
    shift = 8 * j if BITS == 8 else 8 * (j % 4) + 4 * (j // 4)
    codes = (held[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)
    raised: tl.constexpr = 128 if BITS == 4 and HALF else 0
    if BITS == 8:
        codes -= 128
    if raised > 0:
        # The last bits of bfloat16's 128 are units: no conversion is needed.
        codes = (codes | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)
    codes = tl.reshape(codes, (OUT, 32)).to(rows.dtype)
    number = halves + (place // 2)[:, None] + LANES * 2 + r[None, :]
    scale = tl.reshape(tl.load(number, there, 0.0), (OUT,)).to(tl.float32)
    product = tl.dot(codes, rows, input_precision=PRECISION) * scale[:, None]
    if BITS == 4:
        minimum = tl.reshape(tl.load(number + STRIP, there, 0.0), (OUT,)).to(tl.float32)
        product += (minimum - raised * scale)[:, None] * total[None, :]
    return product


@triton.jit
def _store(
    acc,
    other,
    bias,
    second_bias,
    out,
    n,
    m,
    N,
    inside,
    BIASED: tl.constexpr,
    SECOND_BIASED: tl.constexpr,
    GATED: tl.constexpr,
):
    if BIASED:
        acc += tl.load(bias + n, n < N, 0.0).to(tl.float32)[:, None]
    if GATED:
        if SECOND_BIASED:
            other += tl.load(second_bias + n, n < N, 0.0).to(tl.float32)[:, None]
        acc = acc * tl.sigmoid(tl.maximum(acc, -80.0)) * other
    tl.store(out + m[None, :].to(tl.int64) * N + n[:, None], acc.to(out.dtype.element_ty), inside)
