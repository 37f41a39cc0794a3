"""Parts of Triton kernels for rotated pages: rotate queries and what was mixed, and widen tiles of codes to levels.

Imported only where Triton is installed. Knows pages; knows nothing about softmaxes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.launch import Launch, power_of_two
from services.llm_longctx.kernels.packed_pages.layout import PAGE, PackedLayout
from services.llm_longctx.kernels.packed_pages.rotation import hadamard


def turn(layout: PackedLayout, x: Tensor, pages: Tensor, start: Tensor, *, back: bool) -> Tensor:
    """Rotate rows x [R,G,d] as the page where each problem begins says, or back; `start` [R] counts entries."""
    R, G, _ = x.shape
    out = torch.empty_like(x)
    matrix = hadamard(layout.head_dim, x.device)
    launch_turn(layout, G, back=back)((R * G,), x, pages.view(torch.int16), start, matrix, out)
    return out


def launch_turn(layout: PackedLayout, G: int, *, back: bool) -> Launch:
    """A launch with a program per row."""
    wide = power_of_two(layout.head_dim, 16)
    constants = {"HALVES": layout.nbytes // 2, "G": G, "D": layout.head_dim, "WIDE": wide, "BACK": back, "PAGE": PAGE}
    return Launch(_turn, constants | {"COLUMNS": min(4096 // wide, wide)})


@triton.jit
def _sign(head, channel):
    """Signs of channels of a head, as `rotation.signs` has them."""
    x = head.to(tl.uint32) * 0x9E3779B9 + channel.to(tl.uint32) * 0x85EBCA6B
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return tl.where(((x ^ (x >> 16)) & 1) != 0, -1.0, 1.0)


@triton.jit
def _turn(
    x,
    halves,
    start,
    matrix,
    out,
    HALVES: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    BACK: tl.constexpr,
    PAGE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0)
    page = tl.load(start + row // G).to(tl.int64) // PAGE
    bit = tl.arange(0, 2 * PAGE)
    scales = tl.load(halves + (page + 1) * HALVES - 2 * PAGE + bit).to(tl.int32)
    head = tl.sum(((scales >> 15) & 1) << bit, 0)
    i = tl.arange(0, WIDE)
    held = tl.load(x + row * D + i, i < D, 0.0).to(tl.float32)
    if not BACK:
        held = held * _sign(head, i)
    for begin in range(0, D, COLUMNS):
        j = begin + tl.arange(0, COLUMNS)
        some = tl.load(matrix + i[:, None] * D + j[None, :], (i < D)[:, None] & (j < D)[None, :], 0.0)
        turned = tl.sum(held[:, None] * some, 0)
        if BACK:
            turned = turned * _sign(head, j)
        tl.store(out + row * D + j, turned.to(out.dtype.element_ty), j < D)


@triton.jit
def _level(code, BITS: tl.constexpr):
    """Levels of codes, as `rotation.LEVELS` has them: they are symmetric."""
    above = (code & (1 << (BITS - 1))) != 0
    rank = tl.where(above, code, ~code)
    one, two, four = (rank & 1) != 0, (rank & 2) != 0, (rank & 4) != 0
    if BITS == 3:
        size = tl.where(two, tl.where(one, 2.1519, 1.3439), tl.where(one, 0.7560, 0.2451))
    else:
        low = tl.where(two, tl.where(one, 0.9423, 0.6568), tl.where(one, 0.3880, 0.1284))
        high = tl.where(two, tl.where(one, 2.7326, 2.0690), tl.where(one, 1.6180, 1.2562))
        size = tl.where(four, high, low)
    return tl.where(above, size, -size)


@triton.jit
def _load_codes(words, halves, page, held, BITS: tl.constexpr, BEGIN: tl.constexpr, BYTES: tl.constexpr,
                WIDTH: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr):  # fmt: skip
    """Codes of one side that begins BEGIN bytes into its pages, [page,word,step,lane]."""
    STEPS: tl.constexpr = 8 if BITS == 4 else 16
    COUNT: tl.constexpr = WIDE // STEPS * PAGE
    i, step = tl.arange(0, COUNT), tl.arange(0, STEPS)
    there = held[:, None] & (i < WIDTH // STEPS * PAGE)[None, :]
    flat = tl.load(words + (page * (BYTES // 4))[:, None] + (BEGIN // 4 + i)[None, :], there, 0)
    low = tl.reshape(flat, (KEYS // PAGE, WIDE // STEPS, PAGE))[:, :, None, :]
    if BITS == 4:
        code = (low >> (4 * (step >> 1) + 16 * (step & 1))[None, None, :, None]) & 15
    else:
        at = (page * (BYTES // 2))[:, None] + (BEGIN // 2 + WIDTH // STEPS * PAGE * 2 + i)[None, :]
        upper = tl.load(halves + at, there, 0).to(tl.int32)
        high = tl.reshape(upper, (KEYS // PAGE, WIDE // STEPS, PAGE))[:, :, None, :]
        code = (low >> (2 * (step >> 1) + 16 * (step & 1))[None, None, :, None]) & 3
        code |= ((high >> ((step >> 1) + 8 * (step & 1))[None, None, :, None]) & 1) << 2
    return code


@triton.jit
def load_scales(halves, page, held, side, BYTES: tl.constexpr, CODES: tl.constexpr, KEYS: tl.constexpr,
                PAGE: tl.constexpr):  # fmt: skip
    """Scales [KEYS] of the keys (side 0) or values (side 1) of pages, float32."""
    at = halves + (page * (BYTES // 2) + CODES + side * PAGE)[:, None] + tl.arange(0, PAGE)[None, :]
    wide = (tl.load(at, held[:, None], 0) & 0x7FFF).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.reshape(wide, (KEYS,))


@triton.jit
def load_keys(words, halves, page, held, BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr,
              WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr):  # fmt: skip
    """Levels [KEYS,WIDE] of rotated keys: lanes are entries."""
    codes = _load_codes(words, halves, page, held, BITS, 0, BYTES, WIDTH, WIDE, KEYS, PAGE)
    return tl.reshape(tl.permute(_level(codes, BITS), (0, 3, 1, 2)), (KEYS, WIDE))


@triton.jit
def load_values(words, halves, page, held, BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr,
                CODES: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr):  # fmt: skip
    """Levels [KEYS,WIDE] of rotated values: lanes are channels."""
    STEPS: tl.constexpr = 8 if BITS == 4 else 16
    codes = _load_codes(words, halves, page, held, BITS, CODES, BYTES, WIDTH, WIDE, KEYS, PAGE)
    blocks = tl.reshape(_level(codes, BITS), (KEYS // PAGE, WIDE // PAGE, PAGE // STEPS, STEPS, PAGE))
    return tl.reshape(tl.permute(blocks, (0, 2, 3, 1, 4)), (KEYS, WIDE))
