"""Triton kernels of rotated pages: rotate queries and what was mixed, and attend over codes widened to levels.

Imported only where Triton is installed. Knows pages; knows nothing about softmaxes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.launch import Launch, power_of_two
from services.llm_longctx.kernels.device.triton import absorb, finish
from services.llm_longctx.kernels.packed_pages.layout import PAGE, PackedLayout
from services.llm_longctx.kernels.packed_pages.rotation import hadamard
from services.llm_longctx.kernels.packed_pages.runs.triton import hide, open_run


def turn(layout: PackedLayout, x: Tensor, pages: Tensor, start: Tensor, *, back: bool) -> Tensor:
    """Rotate rows x [R,G,d] as the page where each problem begins says, or back; `start` [R] counts entries."""
    R, G, _ = x.shape
    out = torch.empty_like(x)
    matrix = hadamard(layout.head_dim, x.device)
    launch_turn(layout, G, back=back)((R * G,), x, pages.view(torch.int16), start, matrix, out, len(pages))
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
def _turn(x, halves, start, matrix, out, pages,
          HALVES: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BACK: tl.constexpr,
          PAGE: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0)
    # An empty run may begin behind the last page, or nowhere.
    page = tl.maximum(tl.minimum(tl.load(start + row // G).to(tl.int64) // PAGE, pages - 1), 0)
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
def _load_scales(halves, page, held, side, BYTES: tl.constexpr, CODES: tl.constexpr, KEYS: tl.constexpr,
                PAGE: tl.constexpr):  # fmt: skip
    """Scales [KEYS] of the keys (side 0) or values (side 1) of pages, float32."""
    at = halves + (page * (BYTES // 2) + CODES + side * PAGE)[:, None] + tl.arange(0, PAGE)[None, :]
    wide = (tl.load(at, held[:, None], 0) & 0x7FFF).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.reshape(wide, (KEYS,))


@triton.jit
def _load_keys(words, halves, page, held, BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr,
              WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr):  # fmt: skip
    """Levels [KEYS,WIDE] of rotated keys: lanes are entries."""
    codes = _load_codes(words, halves, page, held, BITS, 0, BYTES, WIDTH, WIDE, KEYS, PAGE)
    return tl.reshape(tl.permute(_level(codes, BITS), (0, 3, 1, 2)), (KEYS, WIDE))


@triton.jit
def _load_values(words, halves, page, held, BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr,
                CODES: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr):  # fmt: skip
    """Levels [KEYS,WIDE] of rotated values: lanes are channels."""
    STEPS: tl.constexpr = 8 if BITS == 4 else 16
    codes = _load_codes(words, halves, page, held, BITS, CODES, BYTES, WIDTH, WIDE, KEYS, PAGE)
    blocks = tl.reshape(_level(codes, BITS), (KEYS // PAGE, WIDE // PAGE, PAGE // STEPS, STEPS, PAGE))
    return tl.reshape(tl.permute(blocks, (0, 2, 3, 1, 4)), (KEYS, WIDE))


@triton.jit
def decode_rotated(q, words, pages, weights, start, lengths, weighted, out, lse, part_out, part_lse, arrived, scale,
                   span,
                   BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr,
                   WEIGHTED: tl.constexpr, G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
                   GROUP: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr, AT_ONCE: tl.constexpr,
                   PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """Mix the rotated values of one part of one problem, whose queries are rotated; see `packed_pages.triton`."""
    problem, part = tl.program_id(0), tl.program_id(1)
    first, skip, n = open_run(start, lengths, problem, PAGE)
    parts = tl.maximum(tl.cdiv(n, span), 1)
    if part >= parts:
        return
    words, pages, weights = words + first * (BYTES // 4), pages + first * (BYTES // 2), weights + first * PAGE
    row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row < G)[:, None] & (d < D)[None, :]
    rows = tl.load(q + (problem * G + row)[:, None] * D + d[None, :], inside, 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    end = tl.minimum((part + 1) * span, n)
    weighted_end = tl.where(tl.load(weighted + problem) != 0, end, 0) if WEIGHTED else 0
    for begin in range(part * span, end, KEYS):
        page = begin // PAGE + tl.arange(0, KEYS // PAGE)
        held, page = page * PAGE < end, page.to(tl.int64)
        keys = _load_keys(words, pages, page, held, BITS, BYTES, WIDTH, WIDE, KEYS, PAGE)
        values = _load_values(words, pages, page, held, BITS, BYTES, WIDTH, CODES, WIDE, KEYS, PAGE)
        values *= _load_scales(pages, page, held, 1, BYTES, CODES, KEYS, PAGE)[:, None]
        scores = tl.dot(rows, tl.trans(keys.to(rows.dtype)), input_precision=PRECISION) * scale
        scores *= _load_scales(pages, page, held, 0, BYTES, CODES, KEYS, PAGE)[None, :]
        scores += hide(weights, begin, skip, end, weighted_end, KEYS, WEIGHTED)[None, :]
        most, total, mixed = absorb(scores, values.to(rows.dtype), most, total, mixed, PRECISION)
    finish(most, total, mixed, out, lse, part_out, part_lse, arrived, problem, part, parts, tl.num_programs(1), G, D,
           ROWS, WIDE, GROUP, AT_ONCE)  # fmt: skip
