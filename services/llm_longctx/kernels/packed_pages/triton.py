"""Ragged decode over packed pages on a GPU, or in Triton's interpreter: codes are read as they lie and widened there.

A word of 32 bits is loaded once and spread over the codes that it holds. For rotated pages a launch before rotates the
queries, and one behind rotates back what was mixed. Problems are cut and merged as in
`decode`. Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.decode.device_runs import DeviceRuns
from services.llm_longctx.kernels.decode.triton import Parts, cut
from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, counters, power_of_two, precision
from services.llm_longctx.kernels.device.shapes import DECODERS
from services.llm_longctx.kernels.device.triton import LOG2E, absorb, finish
from services.llm_longctx.kernels.dispatch import is_interpreted
from services.llm_longctx.kernels.packed_pages.layout import CACHE_FORMATS, PAGE, R4, VALUE_GROUP, PackedLayout
from services.llm_longctx.kernels.packed_pages.rotated.triton import (
    launch_turn,
    load_keys,
    load_scales,
    load_values,
    turn,
)


def decode_packed(
    q: Tensor, packed: tuple[PackedLayout, Tensor, Tensor], runs: DeviceRuns, parts: Parts | None = None
) -> tuple[Tensor, Tensor]:
    """See `decode_packed`; the LSE is float32, and nothing is read by the host."""
    layout, pages, _ = packed
    if layout.is_rotated:
        q = turn(layout, q.contiguous(), pages, runs.start, back=False)
    out, lse = _attend(q.contiguous(), packed, runs, parts)
    return (turn(layout, out, pages, runs.start, back=True) if layout.is_rotated else out), lse


def _attend(
    q: Tensor, packed: tuple[PackedLayout, Tensor, Tensor], runs: DeviceRuns, parts: Parts | None
) -> tuple[Tensor, Tensor]:
    layout, pages, log_weights = packed
    R, G, d = q.shape
    out, lse = torch.empty_like(q), torch.empty(R, G, dtype=torch.float32, device=q.device)
    if not R:
        return out, lse
    # A run may begin in the middle of a page.
    card = card_for(q.device)
    parts = parts or cut(R, runs.longest + PAGE, card)
    held = torch.empty(R * parts.most * G * (d + 1), dtype=torch.float32, device=q.device) if parts.most > 1 else lse
    launch = _launch(card, layout, q.dtype, G, weighted=runs.any_weighted)
    launch(
        (R, parts.most),
        q,
        pages.view(torch.int32),
        pages.view(torch.int16) if layout.is_rotated else pages,
        log_weights,
        runs.start,
        runs.n,
        runs.weighted.to(torch.int32),
        out,
        lse,
        held,
        held[-R * parts.most * G :],
        counters(q.device, R),
        d**-0.5 * LOG2E,
        parts.span,
    )
    return out, lse


def _launch(card: GpuCard, layout: PackedLayout, dtype: torch.dtype, G: int, *, weighted: bool) -> Launch:
    d = layout.head_dim
    wide = power_of_two(d, 16)
    keys = min(max(16384 // (wide * dtype.itemsize), 32), 128)
    if layout.width < wide:
        keys = 32  # masks take registers
    if layout.code_bits == 3:
        keys = min(keys, 64 if wide < 128 or card.capability >= 90 else 32)  # so do codes of two planes
    constants = {
        "BITS": layout.code_bits,
        "ROTATED": layout.is_rotated,
        "BYTES": layout.nbytes,
        "WIDTH": layout.width,
        "CODES": layout.code_bytes,
        "VALUE_GROUPS": layout.value_groups,
        "WEIGHTED": weighted,
        "G": G,
        "D": d,
        "ROWS": power_of_two(G, 16),
        "WIDE": wide,
        "GROUP": power_of_two(G),
        "KEYS": keys,
        "PAGE": PAGE,
        "GROUPS": max(wide // VALUE_GROUP, 1),
        "AT_ONCE": max(4096 // (power_of_two(G) * wide), 1),
        "PRECISION": precision(dtype),
        "WIDEN": is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    }
    warps = 8 if layout.is_rotated and wide >= 256 else 4  # four have too few registers for levels of 256 channels
    return Launch(_decode, constants, warps, 3 if card.capability >= 90 else 2)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield all formats for the decoders of `DECODERS`, in bfloat16, and the rotation."""
    types = dict.fromkeys(("q", "out"), "*bf16") | dict.fromkeys(("start", "lengths"), "*i64")
    types |= {"words": "*i32", "pages": "*u8", "weighted": "*i32", "arrived": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("weights", "lse", "part_out", "part_lse"), "*fp32")
    for name, G, d in DECODERS:
        for bits in CACHE_FORMATS:
            layout = PackedLayout(bits, d)
            words = f"{'rotated, ' if layout.is_rotated else ''}{layout.code_bits} bits"
            launch = _launch(card, layout, torch.bfloat16, G, weighted=True)
            kinds = types | {"pages": "*i16"} if layout.is_rotated else types
            share = 0.5 if layout.code_bits == 3 else 0.8  # a thread loads 4 bytes of the upper plane of few channels
            yield Variant("packed_pages", f"{name}, {words}", launch, kinds, frozenset(("span",)), vectorized=share)
        kinds = {"x": "*bf16", "out": "*bf16", "halves": "*i16", "start": "*i64", "matrix": "*fp32"}
        launch = launch_turn(PackedLayout(R4, d), G, back=True)
        yield Variant("packed_pages", f"{name}, rotation", launch, kinds, matrix=False, copies=False, vectorized=0.8)


@triton.jit
def _decode(
    q,
    words,
    pages,
    weights,
    start,
    lengths,
    weighted,
    out,
    lse,
    part_out,
    part_lse,
    arrived,
    scale,
    span,
    BITS: tl.constexpr,
    ROTATED: tl.constexpr,
    BYTES: tl.constexpr,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    GROUPS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    problem, part = tl.program_id(0), tl.program_id(1)
    first, n = tl.load(start + problem), tl.load(lengths + problem)
    # Positions count from the first page's beginning: some of its entries may lie before the run.
    skip = (first % PAGE).to(tl.int32)
    n = tl.where(n > 0, n + skip, 0).to(tl.int32)
    parts = tl.maximum(tl.cdiv(n, span), 1)
    if part >= parts:
        return
    words += first // PAGE * (BYTES // 4)
    pages += first // PAGE * (BYTES // 2 if ROTATED else BYTES)
    weights += first - skip
    row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row < G)[:, None] & (d < D)[None, :]
    rows = tl.load(q + (problem * G + row)[:, None] * D + d[None, :], inside, 0.0)
    kind = rows.dtype
    if WIDEN:
        rows = rows.to(tl.float32)
        kind = tl.float32
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    end = tl.minimum((part + 1) * span, n)
    weighted_end = end
    if WEIGHTED:
        weighted_end = tl.where(tl.load(weighted + problem) != 0, end, 0)
    for begin in range(part * span, end, KEYS):
        page = begin // PAGE + tl.arange(0, KEYS // PAGE)
        held, page = page * PAGE < end, page.to(tl.int64)
        position = begin + tl.arange(0, KEYS)
        if ROTATED:
            keys = load_keys(words, pages, page, held, BITS, BYTES, WIDTH, WIDE, KEYS, PAGE)
            values = load_values(words, pages, page, held, BITS, BYTES, WIDTH, CODES, WIDE, KEYS, PAGE)
            values *= load_scales(pages, page, held, 1, BYTES, CODES, KEYS, PAGE)[:, None]
        else:
            keys = _keys(words, pages, page, held, BITS, BYTES, WIDTH, CODES, WIDE, KEYS, PAGE)
            values = _values(
                words, pages, page, held, BITS, BYTES, WIDTH, CODES, VALUE_GROUPS, WIDE, KEYS, PAGE, GROUPS
            )
        scores = tl.dot(rows, tl.trans(keys.to(kind)), input_precision=PRECISION) * scale
        if ROTATED:
            scores *= load_scales(pages, page, held, 0, BYTES, CODES, KEYS, PAGE)[None, :]
        if WEIGHTED:
            log_weight = tl.load(weights + position, (position >= skip) & (position < weighted_end), 0.0)
            scores += log_weight[None, :] * 1.4426950408889634
        there = (position >= skip) & (position < end)
        scores = tl.where(there[None, :], scores, float("-inf"))
        most, total, mixed = absorb(scores, values.to(kind), most, total, mixed, PRECISION)
    finish(
        most,
        total,
        mixed,
        out,
        lse,
        part_out,
        part_lse,
        arrived,
        problem,
        part,
        parts,
        tl.num_programs(1),
        G,
        D,
        ROWS,
        WIDE,
        GROUP,
        AT_ONCE,
    )


@triton.jit
def _scale_of(code):
    """Scales in float32 of their bytes: 2^(e - 20) · (1 + m / 8)."""
    return ((code.to(tl.int32) << 20) + (107 << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _codes(words, BITS: tl.constexpr):
    """Words [a,b,c] as the codes that they hold, [a,b,step,c] in float32."""
    step = tl.arange(0, 32 // BITS)
    shift = BITS * (step >> 1) + 16 * (step & 1)
    return ((words[:, :, None, :] >> shift[None, None, :, None]) & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def _keys(
    words,
    pages,
    page,
    held,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    WIDE: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Keys [KEYS,WIDE] of pages: a channel has a scale and a zero per page."""
    STEPS: tl.constexpr = 32 // BITS
    i, d = tl.arange(0, WIDE // STEPS * PAGE), tl.arange(0, WIDE)
    there = held[:, None] & (i < WIDTH // STEPS * PAGE)[None, :]
    flat = tl.load(words + (page * (BYTES // 4))[:, None] + i[None, :], there, 0)
    codes = _codes(tl.reshape(flat, (KEYS // PAGE, WIDE // STEPS, PAGE)), BITS)
    byte = pages + (page * BYTES)[:, None] + 2 * CODES + d[None, :]
    some = held[:, None] & (d < WIDTH)[None, :]
    by = _scale_of(tl.load(byte, some, 0))
    zero = tl.load(byte + WIDTH, some, 0).to(tl.int8, bitcast=True).to(tl.float32)
    # The codes of a word are neighbours, [page, entry, word, step]: they are stored for the product in vectors.
    by = tl.reshape(by, (KEYS // PAGE, WIDE // STEPS, STEPS))
    zero = tl.reshape(zero, (KEYS // PAGE, WIDE // STEPS, STEPS))
    wide = (tl.permute(codes, (0, 3, 1, 2)) + zero[:, None, :, :]) * by[:, None, :, :]
    return tl.reshape(wide, (KEYS, WIDE))


@triton.jit
def _values(
    words,
    pages,
    page,
    held,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    WIDE: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Values [KEYS,WIDE] of pages: 64 channels of an entry share a scale and a zero."""
    PARTS: tl.constexpr = PAGE * BITS // 32
    i, group, entry = tl.arange(0, WIDE * PARTS), tl.arange(0, GROUPS), tl.arange(0, PAGE)
    there = held[:, None] & (i < WIDTH * PARTS)[None, :]
    flat = tl.load(words + (page * (BYTES // 4))[:, None] + CODES // 4 + i[None, :], there, 0)
    blocks = tl.reshape(flat, (KEYS // PAGE, WIDE // PAGE, PARTS, PAGE))
    codes = _codes(tl.reshape(tl.permute(blocks, (0, 2, 1, 3)), (KEYS // PAGE, PARTS, WIDE)), BITS)
    codes = tl.reshape(codes, (KEYS, GROUPS, WIDE // GROUPS))
    byte = pages + (page * BYTES)[:, None, None] + 2 * CODES + 2 * WIDTH
    byte += (group * PAGE)[None, :, None] + entry[None, None, :]
    some = held[:, None, None] & (group < VALUE_GROUPS)[None, :, None]
    by = tl.permute(_scale_of(tl.load(byte, some, 0)), (0, 2, 1))
    zero = tl.load(byte + VALUE_GROUPS * PAGE, some, 0).to(tl.int8, bitcast=True).to(tl.float32)
    zero = tl.permute(zero, (0, 2, 1))
    wide = (codes + tl.reshape(zero, (KEYS, GROUPS))[:, :, None]) * tl.reshape(by, (KEYS, GROUPS))[:, :, None]
    return tl.reshape(wide, (KEYS, WIDE))
