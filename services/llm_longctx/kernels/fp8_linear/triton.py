"""Products with FP8 matrices on a GPU, or in Triton's interpreter: x is rounded in a launch before, row by row.

Tiles of products are added up in float32; scales come last. Long rows are cut into parts of columns, which the
program that comes last adds up in order. Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, counters, power_of_two
from services.llm_longctx.kernels.device.shapes import MODELS
from services.llm_longctx.kernels.device.triton import add_parts, store_product
from services.llm_longctx.kernels.fp8_linear.matrix import LEAST_CAPABILITY, LINE, Fp8Matrix, pad_columns

_MOST_ROWS = 64
"""Rows of x of a program."""

_OUT = 64
"""Rows of the matrix."""

_COLUMNS = 128
"""Columns of a tile."""

_LEAST_TILES = 8
"""Tiles of a part: fewer are read before their pipeline is full."""


def multiply(
    x: Tensor, layers: Sequence[tuple[Fp8Matrix, Tensor | None]], *, gated: bool = False, parts: int | None = None
) -> list[Tensor]:
    """Rows of x [...,columns] times matrices: [...,rows] each, of x's dtype; see `quantized_linear.multiply`."""
    codes, scales = _round(x.reshape(-1, x.shape[-1]).contiguous())
    pairs = [(layers[0], layers[1])] if gated else [(layer, None) for layer in layers]
    return [_product(x, codes, scales, layer, other, parts) for layer, other in pairs]


def _round(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x [M,K] in e4m3 [M,K filled up], and their scales float32 [M]."""
    M, K = x.shape
    codes = torch.empty(M, pad_columns(K), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(M, dtype=torch.float32, device=x.device)
    if M:
        _round_launch(K)((M,), x, codes, scales)
    return codes, scales


def _round_launch(K: int) -> Launch:
    return Launch(_round_rows, {"K": K, "STRIDE": pad_columns(K), "BLOCK": min(power_of_two(pad_columns(K), 16), 2048)})


def _product(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    layer: tuple[Fp8Matrix, Tensor | None],
    other: tuple[Fp8Matrix, Tensor | None] | None,
    parts: int | None,
) -> Tensor:
    (matrix, bias), (second, second_bias) = layer, other or layer
    M, N = len(codes), matrix.rows
    out = x.new_empty((*x.shape[:-1], N))
    if not M:
        return out
    launch = _launch(M, x.shape[-1], gated=other is not None, biased=(bias is not None, second_bias is not None))
    rows, tiles = int(str(launch.constants["ROWS"])), triton.cdiv(codes.shape[1], _COLUMNS)
    grid = triton.cdiv(N, _OUT), triton.cdiv(M, rows)
    if parts is None:
        wanted = -(-4 * card_for(x.device).processors // (grid[0] * grid[1]))
        parts = max(min(wanted, tiles // _LEAST_TILES), 1)
    span = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, span)
    cells = grid[0] * grid[1] * parts * rows * _OUT * 2
    sums = torch.empty(cells, dtype=torch.float32, device=x.device) if parts > 1 else scales
    launch(
        (*grid, parts),
        codes,
        scales,
        *(one.data.view(kind) for one in (matrix, second) for kind in (torch.float8_e4m3fn, torch.float32)),
        x if bias is None else bias,
        x if second_bias is None else second_bias,
        out,
        sums,
        counters(x.device, grid[0] * grid[1]),
        M,
        N,
        span,
    )
    return out


def _launch(M: int, K: int, *, gated: bool, biased: tuple[bool, bool]) -> Launch:
    constants = {
        "WIDTH": pad_columns(K), "LINE": LINE, "OUT": _OUT, "COLUMNS": _COLUMNS,
        "ROWS": min(power_of_two(M, 16), _MOST_ROWS), "GATED": gated, "BIASED": biased[0], "SECOND_BIASED": biased[1],
    }  # fmt: skip
    return Launch(_multiply, constants, 4, 4 if not gated else 3)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield batches of 16 to 64 rows, a gated pair, and the rounding, for cards that multiply FP8."""
    if card.capability < LEAST_CAPABILITY:
        return
    types = dict.fromkeys(("bias", "second_bias", "out"), "*bf16") | {"sums": "*fp32", "arrived": "*i32"}
    types |= dict.fromkeys(("x", "codes", "second_codes"), "*fp8e4nv")
    types |= dict.fromkeys(("x_scales", "scales", "second_scales"), "*fp32")
    for model in MODELS[:2]:
        for M, gated in ((16, False), (16, True), (32, False), (64, False)):
            launch = _launch(M, model.width, gated=gated, biased=(False, False))
            shape = f"{model.name}, {M} rows{', gated' if gated else ''}"
            yield Variant("fp8_linear", shape, launch, types, vectorized=0.85)  # scales are single numbers
        kinds = {"x": "*bf16", "codes": "*fp8e4nv", "scales": "*fp32"}
        launch = _round_launch(model.width)
        yield Variant("fp8_linear", f"{model.name}, rounding", launch, kinds, matrix=False, copies=False)


@triton.jit
def _round_rows(x, codes, scales, K: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    most = 0.0
    for begin in range(0, K, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.max(tl.abs(tl.load(x + row * K + k, k < K, 0.0).to(tl.float32)), 0))
    scale = tl.maximum(most, 1e-30) / 448.0
    tl.store(scales + row, scale)
    for begin in range(0, STRIDE, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        held = tl.load(x + row * K + k, k < K, 0.0).to(tl.float32) / scale
        held = _round_to_e4m3(tl.minimum(tl.maximum(held, -448.0), 448.0))
        tl.store(codes + row * STRIDE + k, held.to(tl.float8e4nv), k < STRIDE)


@triton.jit
def _round_to_e4m3(x):
    """The nearest numbers of e4m3, ties to even, still in float32: the interpreter's conversion drops carries."""
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    # Below 2^-6 all are 2^-9 apart, as float32 is from 2^14 on.
    return tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, normal)


@triton.jit
def _multiply(x, x_scales, codes, scales, second_codes, second_scales, bias, second_bias, out, sums, arrived, M, N,
              span,
              WIDTH: tl.constexpr, LINE: tl.constexpr, OUT: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
              GATED: tl.constexpr, BIASED: tl.constexpr, SECOND_BIASED: tl.constexpr):  # fmt: skip
    block, chunk, part, parts = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    n, m = block * OUT + tl.arange(0, OUT), chunk * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros((OUT, ROWS), tl.float32)
    other = tl.zeros((OUT, ROWS), tl.float32)
    at = n.to(tl.int64) * (WIDTH + LINE)
    for tile in range(part * span, tl.minimum((part + 1) * span, tl.cdiv(WIDTH, COLUMNS))):
        k = tile * COLUMNS + tl.arange(0, COLUMNS)
        # Rows are filled up to 16 bytes, so that a vector lies inside or outside as a whole.
        inside = k < WIDTH
        rows = tl.load(x + m[None, :] * WIDTH + k[:, None], (m < M)[None, :] & inside[:, None], 0.0)
        some = (n < N)[:, None] & inside[None, :]
        # An H100's tensor cores add FP8 products up in some 14 bits: a tile's sum goes to float32 before the next.
        acc = tl.dot(tl.load(codes + at[:, None] + k[None, :], some, 0.0), rows, acc, max_num_imprecise_acc=COLUMNS)
        if GATED:
            held = tl.load(second_codes + at[:, None] + k[None, :], some, 0.0)
            other = tl.dot(held, rows, other, max_num_imprecise_acc=COLUMNS)
    is_last = True
    if parts > 1:
        task = block * tl.num_programs(1) + chunk
        acc, other, is_last = add_parts(acc, other, sums, arrived, task, part, parts, OUT, ROWS, GATED)
    if is_last:
        by_row = tl.load(x_scales + m, m < M, 0.0)[None, :]
        number = n.to(tl.int64) * ((WIDTH + LINE) // 4) + WIDTH // 4
        acc *= tl.load(scales + number, n < N, 0.0)[:, None] * by_row
        if GATED:
            other *= tl.load(second_scales + number, n < N, 0.0)[:, None] * by_row
        store_product(acc, other, bias, second_bias, out, n, m, M, N, BIASED, SECOND_BIASED, GATED)
