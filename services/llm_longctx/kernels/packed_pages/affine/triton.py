"""Triton kernel of pages with scales and zeros: codes are widened in pairs, and never leave a value's registers.

Scores are [entry,row] and outputs [channel,row], so that rows fill 8 columns of a tensor core's product instead of 16
rows. Values stay whole numbers: a share takes the scale of its entry, and zeros are added up apart. Imported only
where Triton is installed. Knows pages; knows nothing about launches.
"""

from __future__ import annotations

import triton
import triton.language as tl

from services.llm_longctx.kernels.device.triton import as_pairs, finish, float_of, scale_pairs
from services.llm_longctx.kernels.packed_pages.runs.triton import hide, open_run


@triton.jit
def decode_affine(q, words, pages, weights, start, lengths, weighted, out, lse, part_out, part_lse, arrived, scale,
                  span,
                  BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr,
                  VALUE_GROUPS: tl.constexpr, WEIGHTED: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
                  ROWS: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr,
                  GROUPS: tl.constexpr, AT_ONCE: tl.constexpr, PRECISION: tl.constexpr,
                  WIDEN: tl.constexpr):  # fmt: skip
    """Mix the values of one part of one problem; see `packed_pages.triton`."""
    problem, part = tl.program_id(0), tl.program_id(1)
    first, skip, n = open_run(start, lengths, problem, PAGE)
    parts = tl.maximum(tl.cdiv(n, span), 1)
    if part >= parts:
        return
    words, pages, weights = words + first * (BYTES // 4), pages + first * BYTES, weights + first * PAGE
    row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row < G)[None, :] & (d < D)[:, None]
    rows = tl.load(q + (problem * G + row)[None, :] * D + d[:, None], inside, 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    low = tl.zeros((GROUPS, ROWS), tl.float32)
    mixed = tl.zeros((GROUPS, WIDE // GROUPS, ROWS), tl.float32)
    end = tl.minimum((part + 1) * span, n)
    weighted_end = tl.where(tl.load(weighted + problem) != 0, end, 0) if WEIGHTED else 0
    PAIRS: tl.constexpr = BITS == 4 and q.dtype.element_ty == tl.bfloat16
    for begin in range(part * span, end, KEYS):
        page = begin // PAGE + tl.arange(0, KEYS // PAGE)
        held, page = page * PAGE < end, page.to(tl.int64)
        keys = _keys(words, pages, page, held, BITS, BYTES, WIDTH, CODES, WIDE, KEYS, PAGE, PAIRS, WIDEN)
        scores = tl.dot(keys.to(rows.dtype), rows, input_precision=PRECISION) * scale
        scores += hide(weights, begin, skip, end, weighted_end, KEYS, WEIGHTED)[:, None]
        now = tl.maximum(most, tl.max(scores, 0))
        # A row that has seen nothing yet has no largest score: −inf − −inf is no number.
        shift = tl.where(now == float("-inf"), 0.0, now)
        shares, by = tl.exp2(scores - shift[None, :]), tl.exp2(most - shift)
        most, total = now, total * by + tl.sum(shares, 0)
        codes = _values(words, page, held, BITS, BYTES, WIDTH, CODES, WIDE, KEYS, PAGE, GROUPS, PAIRS, WIDEN)
        scales, zeros = _value_scales(pages, page, held, BYTES, WIDTH, CODES, VALUE_GROUPS, KEYS, PAGE, GROUPS)
        low = low * by[None, :] + tl.sum(shares[None] * (scales * zeros)[:, :, None], 1)
        scaled = _in_order((shares[None] * scales[:, :, None]).to(rows.dtype), BITS, GROUPS, KEYS, ROWS)
        mixed = tl.dot(codes.to(rows.dtype), scaled, mixed * by[None, None, :], input_precision=PRECISION)
    mixed = tl.trans(tl.reshape(mixed + low[:, None, :], (WIDE, ROWS)))
    finish(most, total, mixed, out, lse, part_out, part_lse, arrived, problem, part, parts, tl.num_programs(1), G, D,
           ROWS, WIDE, GROUP, AT_ONCE)  # fmt: skip


@triton.jit
def _scale_of(code):
    """Scales in float32 of their bytes: 2^(e - 20) · (1 + m / 8)."""
    return ((code.to(tl.int32) << 20) + (107 << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _join_pairs(bits, A: tl.constexpr, B: tl.constexpr):
    """Numbers [A,2B] of 16 bits as words [A,B]. The sum also keeps the compiler from widening scales once per lane."""
    return tl.sum(tl.reshape(bits, (A, B, 2)) << (16 * tl.arange(0, 2))[None, None, :], 2)


@triton.jit
def _spread(words, BITS: tl.constexpr):
    """Words [a,b,c] as their codes [a,b,c,step], whole numbers."""
    step = tl.arange(0, 32 // BITS)
    return (words[:, :, :, None] >> (BITS * (step >> 1) + 16 * (step & 1))[None, None, None, :]) & ((1 << BITS) - 1)


@triton.jit
def _spread_pairs(words):
    """Words [a,b,c] of 4-bit codes as words [a,b,c,4] of two bfloat16, 128 + code: its last bits are units."""
    return ((words[:, :, :, None] >> (4 * tl.arange(0, 4))[None, None, None, :]) & 0x000F000F) | 0x43004300


@triton.jit
def _keys(words, pages, page, held, BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr,
          WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr, PAIRS: tl.constexpr,
          WIDEN: tl.constexpr):  # fmt: skip
    """Keys [KEYS,WIDE] of pages: a channel has a scale and a zero per page."""
    STEPS: tl.constexpr = 32 // BITS
    PAGES: tl.constexpr = KEYS // PAGE
    i, d = tl.arange(0, WIDE // STEPS * PAGE), tl.arange(0, WIDE)
    there = held[:, None] & (i < WIDTH // STEPS * PAGE)[None, :]
    flat = tl.load(words + (page * (BYTES // 4))[:, None] + i[None, :], there, 0)
    flat = tl.reshape(flat, (PAGES, WIDE // STEPS, PAGE))
    byte = pages + (page * BYTES)[:, None] + 2 * CODES + d[None, :]
    some = held[:, None] & (d < WIDTH)[None, :]
    scale = tl.load(byte, some, 0)
    zero = tl.load(byte + WIDTH, some, 0).to(tl.int8, bitcast=True).to(tl.float32)
    if PAIRS:
        # 128 + code, zero - 128 and scales are exact in bfloat16.
        zeros = ((zero - 128.0).to(tl.int32, bitcast=True) >> 16) & 0xFFFF
        zeros = tl.reshape(_join_pairs(zeros, PAGES, WIDE // 2), (PAGES, WIDE // STEPS, 1, STEPS // 2))
        scales = _join_pairs((scale.to(tl.int32) << 4) + (107 << 7), PAGES, WIDE // 2)
        scales = tl.reshape(scales, (PAGES, WIDE // STEPS, 1, STEPS // 2))
        none = tl.full((1, 1, 1, 1), -0x7FFF8000, tl.int32)  # two of -0
        wide = tl.permute(scale_pairs(_spread_pairs(flat), zeros, scales, none, WIDEN), (0, 2, 1, 3, 4))
    else:
        zeros = tl.reshape(zero, (PAGES, WIDE // STEPS, 1, STEPS))
        scales = tl.reshape(_scale_of(scale), (PAGES, WIDE // STEPS, 1, STEPS))
        wide = tl.permute((float_of(_spread(flat, BITS)) + zeros) * scales, (0, 2, 1, 3))
    return tl.reshape(wide, (KEYS, WIDE))


@triton.jit
def _values(words, page, held, BITS: tl.constexpr, BYTES: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr,
            WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr, GROUPS: tl.constexpr, PAIRS: tl.constexpr,
            WIDEN: tl.constexpr):  # fmt: skip
    """Codes [group,channel,KEYS] of values, with entries in the order of `_in_order`."""
    STEPS: tl.constexpr = 32 // BITS
    PARTS: tl.constexpr = PAGE // STEPS
    i = tl.arange(0, WIDE * PARTS)
    there = held[:, None] & (i < WIDTH * PARTS)[None, :]
    flat = tl.load(words + (page * (BYTES // 4))[:, None] + CODES // 4 + i[None, :], there, 0)
    # [page, block of 16 channels, part of 8 or 4 entries, channel]
    flat = tl.reshape(flat, (KEYS // PAGE * (WIDE // PAGE), PARTS, PAGE))
    codes = as_pairs(_spread_pairs(flat), WIDEN) - 128 if PAIRS else float_of(_spread(flat, BITS))
    codes = tl.reshape(codes, (KEYS // (4 * STEPS), 4 // PARTS, WIDE // PAGE, PARTS, PAGE, STEPS // 2, 2))
    return tl.reshape(tl.permute(codes, (2, 4, 0, 5, 1, 3, 6)), (GROUPS, WIDE // GROUPS, KEYS))


@triton.jit
def _in_order(x, BITS: tl.constexpr, GROUPS: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr):
    """Entries of x [group,KEYS,row] in the order in which a thread of a tensor core's product has whole words."""
    STEPS: tl.constexpr = 32 // BITS
    x = tl.reshape(x, (GROUPS, KEYS // (4 * STEPS), 4, STEPS // 2, 2, ROWS))
    return tl.reshape(tl.permute(x, (0, 1, 3, 2, 4, 5)), (GROUPS, KEYS, ROWS))


@triton.jit
def _value_scales(pages, page, held, BYTES: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr,
                  VALUE_GROUPS: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr,
                  GROUPS: tl.constexpr):  # fmt: skip
    """Scales and zeros [group,KEYS] of values: 64 channels of an entry share them."""
    group, entry = tl.arange(0, GROUPS), tl.arange(0, PAGE)
    byte = pages + (page * BYTES)[None, :, None] + 2 * CODES + 2 * WIDTH
    byte += (group * PAGE)[:, None, None] + entry[None, None, :]
    some = held[None, :, None] & (group < VALUE_GROUPS)[:, None, None]
    scales = _scale_of(tl.load(byte, some, 0))
    zeros = tl.load(byte + VALUE_GROUPS * PAGE, some, 0).to(tl.int8, bitcast=True).to(tl.float32)
    return tl.reshape(scales, (GROUPS, KEYS)), tl.reshape(zeros, (GROUPS, KEYS))
