"""Products with few-bit matrices on a GPU, or in Triton's interpreter: the packed matrix is read where it lies.

A program multiplies some strips of 16 rows of the matrix side by side. Codes are widened to x's type in registers, in
the order in which a thread of a tensor core's product has whole words, and x follows that order. Long rows are cut into
parts of columns, which the program that comes last adds up in order. Imported only where Triton is installed. Knows
nothing about other back ends.
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
from services.llm_longctx.kernels.device.triton import add_parts, float_of, scale_pairs, store_product
from services.llm_longctx.kernels.dispatch import is_interpreted
from services.llm_longctx.kernels.quantized_linear.packing import STRIP, PackedMatrix, tile_of
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
    if gated and layers[0][0].bits == layers[1][0].bits:
        return [_product(x, layers[0], layers[1], parts)]
    if gated:
        gate, up = (_product(x, layer, None, parts) for layer in layers)
        return [functional.silu(gate) * up]
    return [_product(x, layer, None, parts) for layer in layers]


def _product(
    x: Tensor,
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
    tile = int(str(launch.constants["TILE"]))
    span = -(-triton.cdiv(groups, parts) // tile) * tile
    parts = triton.cdiv(groups, span)
    cells = grid[0] * grid[1] * rows * strips * STRIP
    sums = torch.empty(cells * parts * 2, dtype=torch.float32, device=x.device) if parts > 1 else x
    launch(
        (*grid, parts), x, matrix.data.view(torch.int32), matrix.data.view(torch.float16),
        second.data.view(torch.int32), second.data.view(torch.float16), x if bias is None else bias,
        x if second_bias is None else second_bias, out, sums, counters(x.device, grid[0] * grid[1]), M, N,
        matrix.data.shape[0], span,
    )  # fmt: skip
    return out


def _launch(
    card: GpuCard, dtype: torch.dtype, M: int, bits: int, K: int, *, gated: bool, biased: tuple[bool, bool]
) -> Launch:
    strips, tile = tile_of(card.capability)
    most = _MOST_ROWS if card.capability < 100 else _MOST_ROWS // 2
    if dtype == torch.float32:
        tile, most = 1, 16
    constants = {
        "BITS": bits,
        "K": K,
        "GROUPS": -(-K // GROUP),
        "GROUP": GROUP,
        "STRIP": STRIP,
        "STRIPS": strips,
        "TILE": tile,
        "EVEN": K % (tile * GROUP) == 0,
        "ROWS": min(power_of_two(M, 16), most),
        "GATED": gated,
        "BIASED": biased[0],
        "SECOND_BIASED": biased[1],
        "PRECISION": precision(dtype),
        "WIDEN": is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    }
    # Two warps keep a B200 from products in tensor memory, where codes would have to be stored first.
    return Launch(_multiply, constants, 4 if card.capability < 100 else 2, 4 if not gated else 3)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield both widths of codes, for batches of 16 to 64 rows, and a gated pair."""
    types = dict.fromkeys(("x", "bias", "second_bias", "out"), "*bf16") | {"sums": "*fp32", "arrived": "*i32"}
    types |= dict.fromkeys(("words", "second_words"), "*i32") | dict.fromkeys(("halves", "second_halves"), "*fp16")
    for model in MODELS[:2]:
        for bits in (8, 4):
            for M, gated in ((16, False), (16, True), (32, False), (64, False)):
                launch = _launch(card, torch.bfloat16, M, bits, model.width, gated=gated, biased=(False, False))
                shape = f"{model.name}, {bits} bits, {M} rows{', gated' if gated else ''}"
                yield Variant("quantized_linear", shape, launch, types, copies=False, vectorized=0.8)


@triton.jit
def _multiply(x, words, halves, second_words, second_halves, bias, second_bias, out, sums, arrived, M, N, strips, span,
              BITS: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, STRIP: tl.constexpr,
              STRIPS: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr,
              BIASED: tl.constexpr, SECOND_BIASED: tl.constexpr, PRECISION: tl.constexpr,
              WIDEN: tl.constexpr):  # fmt: skip
    OUT: tl.constexpr = STRIPS * STRIP
    PAIRS: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    block, chunk, part, parts = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    strip, m, column = (
        block * STRIPS + tl.arange(0, STRIPS),
        chunk * ROWS + tl.arange(0, ROWS),
        tl.arange(0, GROUP * TILE),
    )
    acc = tl.zeros((OUT, ROWS), tl.float32)
    other = tl.zeros((OUT, ROWS), tl.float32)
    for group in range(part * span, tl.minimum((part + 1) * span, GROUPS), TILE):
        k = group * GROUP + column
        inside = (m < M)[None, :]
        if not EVEN:
            inside = inside & (k < K)[:, None]
        rows = _in_order(tl.load(x + m[None, :] * K + k[:, None], inside, 0.0), BITS, TILE, ROWS)
        if WIDEN:
            rows = rows.to(tl.float32)
        held = (strip < strips)[:, None]
        if not EVEN:
            held = held & (group + tl.arange(0, TILE) < GROUPS)[None, :]
        wide = _widen(words, halves, strip, held, group, BITS, GROUPS, STRIP, STRIPS, TILE, PAIRS, WIDEN)
        acc = tl.dot(wide.to(rows.dtype), rows, acc, input_precision=PRECISION)
        if GATED:
            wide = _widen(second_words, second_halves, strip, held, group, BITS, GROUPS, STRIP, STRIPS, TILE, PAIRS,
                          WIDEN)  # fmt: skip
            other = tl.dot(wide.to(rows.dtype), rows, other, input_precision=PRECISION)
    n = block * OUT + tl.arange(0, OUT)
    is_last = True
    if parts > 1:
        task = block * tl.num_programs(1) + chunk
        acc, other, is_last = add_parts(acc, other, sums, arrived, task, part, parts, OUT, ROWS, GATED)
    if is_last:
        store_product(acc, other, bias, second_bias, out, n, m, M, N, BIASED, SECOND_BIASED, GATED)


@triton.jit
def _in_order(x, BITS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):
    """Columns of x [32·TILE,row] in the order of `_widen`: a thread of the product has whole words of codes."""
    x = tl.reshape(x, (TILE * BITS // 4, 4, 8 // BITS, 2, 2, ROWS))  # [.,word,half,pair,low,row]
    return tl.reshape(tl.permute(x, (0, 4, 2, 1, 3, 5)), (32 * TILE, ROWS))


@triton.jit
def _widen(words, halves, strip, held, group, BITS: tl.constexpr, GROUPS: tl.constexpr, STRIP: tl.constexpr,
           STRIPS: tl.constexpr, TILE: tl.constexpr, PAIRS: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """TILE groups of 32 columns [row,column] of the matrix, in the order of `_in_order`."""
    J: tl.constexpr = BITS // 4
    LANES: tl.constexpr = 4 * J * STRIP
    BYTES: tl.constexpr = LANES * 4 + (64 if BITS == 4 else 32)
    lane, r, g = tl.arange(0, LANES), tl.arange(0, STRIP), tl.arange(0, TILE)
    place = (strip.to(tl.int64)[:, None] * GROUPS + group + g[None, :]) * BYTES
    flat = tl.load(words + (place // 4)[:, :, None] + lane[None, None, :], held[:, :, None], 0)
    flat = tl.permute(tl.reshape(flat, (STRIPS, TILE, J, 4, STRIP)), (0, 4, 1, 2, 3))  # [strip,row,group,j,word]
    number = halves + (place // 2)[:, :, None] + LANES * 2 + r[None, None, :]
    scale = _by_row(tl.load(number, held[:, :, None], 0.0), STRIPS, STRIP, TILE)
    least = tl.zeros_like(scale)
    if BITS == 4:
        least = _by_row(tl.load(number + STRIP, held[:, :, None], 0.0), STRIPS, STRIP, TILE)
    i = tl.arange(0, 16 // BITS)
    codes = flat[:, :, :, :, :, None] >> (BITS * i)[None, None, None, None, None, :]
    if PAIRS:
        if BITS == 4:  # 128 + code, whose last bits are units, less 128
            zeros = tl.full((1, 1, 1, 1, 1, 1), -0x3CFF3D00, tl.int32)
            codes = (codes & 0x000F000F) | 0x43004300
        else:  # 128 + the code's lower seven bits, less 256 or, where the eighth is set, 128: codes are from -128 on
            zeros = (codes & 0x00800080) ^ -0x3C7F3C80
            codes = (codes & 0x007F007F) | 0x43004300
        wide = scale_pairs(codes, zeros, _twice(scale), _twice(least), WIDEN)
    else:
        low, high = codes & ((1 << BITS) - 1), (codes >> 16) & ((1 << BITS) - 1)
        wide = float_of(tl.join(low, high)) - (128.0 if BITS == 8 else 0.0)
        wide = wide * scale[:, :, :, :, :, :, None] + least[:, :, :, :, :, :, None]
    wide = tl.permute(wide, (0, 1, 2, 3, 5, 4, 6))
    return tl.reshape(wide, (STRIPS * STRIP, 32 * TILE))


@triton.jit
def _by_row(numbers, STRIPS: tl.constexpr, STRIP: tl.constexpr, TILE: tl.constexpr):
    """Numbers [strip,group,row] in float32 as [strip,row,group,1,1,1]."""
    return tl.reshape(tl.permute(numbers, (0, 2, 1)).to(tl.float32), (STRIPS, STRIP, TILE, 1, 1, 1))


@triton.jit
def _twice(number):
    """Words that hold a number twice, rounded to bfloat16."""
    bits = number.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)
