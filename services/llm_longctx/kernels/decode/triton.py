"""Ragged decode on a GPU, or in Triton's interpreter: a program per span of a problem, its query rows together.

All entries lie in one tensor each of keys and values, and a problem's begin at an offset that the compiler knows to be
aligned: loads are as wide as the hardware's, and copies to shared memory run in the background. A long problem is cut
into parts, which the program that comes last merges, all in one launch. Imported only where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.decode.device_runs import DeviceRuns
from services.llm_longctx.kernels.decode.pages import PageTable
from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, counters, power_of_two, precision
from services.llm_longctx.kernels.device.shapes import DECODERS
from services.llm_longctx.kernels.device.triton import LOG2E, absorb, finish
from services.llm_longctx.kernels.dispatch import is_interpreted

MOST_PARTS = 64
"""Parts of a problem: more take longer to merge than they save."""

LEAST_SPAN = 256
"""Entries of a part: fewer are read before their pipeline is full."""

PROGRAMS_PER_PROCESSOR = 4

_TILE_BYTES = 16384
"""Bytes of keys that a program copies at a time."""


class Parts(NamedTuple):
    """How problems are cut: `most` parts at most, of `span` entries each."""

    most: int
    span: int


def cut(
    problems: int, longest: int, card: GpuCard, least: int = LEAST_SPAN, programs: int = PROGRAMS_PER_PROCESSOR
) -> Parts:
    """Cut problems so that some programs run on every processor of a card."""
    wanted = -(-programs * card.processors // max(problems, 1))
    span = max(-(-longest // min(wanted, MOST_PARTS)), least)
    span = -(-span // least) * least
    return Parts(max(-(-longest // span), 1), span)


def decode(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    log_weights: Sequence[Tensor | None],
    parts: Parts | None = None,
) -> tuple[Tensor, Tensor]:
    """See `decode`; the LSE is float32."""
    keys, values = (_equal_rows(held) for held in (keys, values))
    weights = [None if one is None else one.to(torch.float32).contiguous() for one in log_weights]
    k, k_at, k_row = _offsets(keys, q)
    v, v_at, v_row = _offsets(values, q)
    w, w_at, _ = _offsets([one for one in weights if one is not None], q)
    placed = iter(w_at)
    n = [len(one) for one in keys]
    w_at = [-1 if one is None else next(placed) for one in weights]
    unit = gcd(*k_at, *v_at, k_row, v_row, 16)
    table = torch.tensor([[at // unit for at in k_at], [at // unit for at in v_at], w_at, n]).to(q.device)
    keys_at, values_at, weights_at, lengths = table.unbind()
    where = _Where(k, v, w, keys_at, values_at, weights_at, lengths, k_row, v_row, unit)
    return _run(q, where, max(n, default=0), any(at >= 0 for at in w_at), parts)


def decode_device_runs(
    q: Tensor, stores: tuple[Tensor, Tensor, Tensor], runs: DeviceRuns, parts: Parts | None = None
) -> tuple[Tensor, Tensor]:
    """See `decode_device_runs`: nothing is read by the host."""
    (keys, values), log_weights = _equal_rows(stores[:2]), stores[2]
    weights_at = torch.where(runs.weighted, runs.start, -1)
    row = keys.stride(0)
    where = _Where(keys, values, log_weights, runs.start, runs.start, weights_at, runs.n, row, values.stride(0), row)
    return _run(q, where, runs.longest, runs.any_weighted, parts)


def decode_pages(
    q: Tensor, pool: Tensor, pages: PageTable, log_weights: Sequence[Tensor | None], parts: Parts | None = None
) -> tuple[Tensor, Tensor]:
    """See `decode_pages`: the pages are read where they lie; their size is a power of two."""
    pool = pool if pool.stride(3) == 1 else pool.contiguous()
    weights = [None if one is None else one.to(torch.float32).contiguous() for one in log_weights]
    w, w_at, _ = _offsets([one for one in weights if one is not None], q)
    placed = iter(w_at)
    w_at = [-1 if one is None else next(placed) for one in weights]
    first, n = (x.to(q.device, torch.int64) for x in (pages.row_ptr[:-1], pages.lengths))
    weights_at, row = torch.tensor(w_at, dtype=torch.int64, device=q.device), pool.stride(2)
    where = _Where(pool[:, 0], pool[:, 1], w, first, first, weights_at, n, row, row, gcd(row, pool.stride(0), 16))
    paged = _Pages(pages.pages.to(q.device), pool.stride(0), pool.shape[2])
    longest = int(pages.lengths.max()) if len(pages.lengths) else 0
    return _run(q, where, longest, any(one is not None for one in weights), parts, paged)


class _Where(NamedTuple):
    """Where entries lie: of each problem the offset of its keys and values in units, of its weights (−1: none), n."""

    k: Tensor
    v: Tensor
    weights: Tensor
    k_at: Tensor
    v_at: Tensor
    weights_at: Tensor
    n: Tensor
    k_row: int
    v_row: int
    unit: int


class _Pages(NamedTuple):
    numbers: Tensor
    stride: int
    size: int


def _equal_rows(held: Sequence[Tensor]) -> list[Tensor]:
    """The same entries, all with one distance between rows."""
    if len({x.stride(0) for x in held if len(x) > 1}) <= 1 and all(x.stride(1) == 1 for x in held):
        return list(held)
    return [x.contiguous() for x in held]


def _offsets(held: Sequence[Tensor], q: Tensor) -> tuple[Tensor, list[int], int]:
    """The tensor that lies first, how many numbers behind it each one begins, and the distance between rows."""
    held = list(held) or [q]
    base = min(held, key=lambda x: x.data_ptr())
    row = next((x.stride(0) for x in held if len(x) > 1), held[0].stride(0))
    return base, [(x.data_ptr() - base.data_ptr()) // x.element_size() if x.numel() else 0 for x in held], row


def _run(
    q: Tensor, where: _Where, longest: int, weighted: bool, parts: Parts | None, paged: _Pages | None = None
) -> tuple[Tensor, Tensor]:
    q = q.contiguous()
    R, G, d = q.shape
    out, lse = torch.empty_like(q), torch.empty(R, G, dtype=torch.float32, device=q.device)
    if not R:
        return out, lse
    card = card_for(q.device)
    parts = parts or cut(R, longest, card)
    held = torch.empty(R * parts.most * G * (d + 1), dtype=torch.float32, device=q.device) if parts.most > 1 else lse
    part_out, part_lse = held, held[-R * parts.most * G :]
    numbers, page_stride, page = paged or (where.n, 0, 0)
    launch = _launch(q.dtype, G, d, page=page, unit=where.unit, weighted=weighted)
    launch(
        (R, parts.most), q, where.k, where.v, where.weights, where.k_at, where.v_at, where.weights_at, where.n, numbers,
        out, lse, part_out, part_lse, counters(q.device, R), where.k_row, where.v_row, page_stride, d**-0.5 * LOG2E,
        parts.span,
    )  # fmt: skip
    return out, lse


def _launch(dtype: torch.dtype, G: int, d: int, *, page: int, unit: int, weighted: bool) -> Launch:
    """Shape a launch: tiles shrink as rows of keys grow, so that a few programs fit on a processor of any card."""
    wide, rows = power_of_two(d, 16), power_of_two(G, 16)
    row_bytes = wide * dtype.itemsize
    keys = min(max(_TILE_BYTES // row_bytes, 32), 128) if rows <= 32 else 32
    constants = {
        "PAGE": page,
        "UNIT": unit,
        "WEIGHTED": weighted,
        "G": G,
        "D": d,
        "ROWS": rows,
        "WIDE": wide,
        "GROUP": power_of_two(G),
        "KEYS": keys,
        "AT_ONCE": max(4096 // (power_of_two(G) * wide), 1),
        "PRECISION": precision(dtype),
        "WIDEN": is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    }
    if row_bytes > 512:  # two stages would be more than an L4 has
        return Launch(_decode, constants, 8, 1)
    return Launch(_decode, constants, stages=2 if dtype == torch.float32 else 3)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield decode of the decoders that are served, from runs and from pages, and two in float32."""
    pointers = {"k_at": "*i64", "v_at": "*i64", "weights_at": "*i64", "lengths": "*i64", "pages": "*i32"}
    floats = dict.fromkeys(("weights", "lse", "part_out", "part_lse"), "*fp32") | {"scale": "fp32"}
    aligned = frozenset(("k_row", "v_row", "page_stride", "span"))
    for name, G, d in DECODERS:
        for page, dtype in ((0, torch.bfloat16), (16, torch.bfloat16), (0, torch.float32)):
            if dtype == torch.float32 and not name.startswith(("Llama", "Gemma")):
                continue
            kind = "bf16" if dtype == torch.bfloat16 else "fp32"
            types = pointers | floats | dict.fromkeys(("q", "k", "v", "out"), f"*{kind}") | {"arrived": "*i32"}
            where = f"pages of {page}" if page else "runs"
            launch = _launch(dtype, G, d, page=page, unit=16, weighted=True)
            yield Variant("decode", f"{name}, {kind}, {where}", launch, types, aligned, copies=launch.stages > 1)


@triton.jit
def _decode(q, k, v, weights, k_at, v_at, weights_at, lengths, pages, out, lse, part_out, part_lse, arrived, k_row,
            v_row, page_stride, scale, span,
            PAGE: tl.constexpr, UNIT: tl.constexpr, WEIGHTED: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
            ROWS: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, AT_ONCE: tl.constexpr,
            PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    problem, part = tl.program_id(0), tl.program_id(1)
    n = tl.load(lengths + problem)
    parts = tl.maximum(tl.cdiv(n, span), 1)
    if part >= parts:
        return
    first_k, first_v = tl.load(k_at + problem), tl.load(v_at + problem)
    if PAGE == 0:
        k += first_k * UNIT
        v += first_v * UNIT
    if WEIGHTED:
        weight = tl.load(weights_at + problem)
        weights += tl.maximum(weight, 0)
    row, d, j = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, KEYS)
    inside = (row < G)[:, None] & (d < D)[None, :]
    rows = tl.load(q + (problem * G + row)[:, None] * D + d[None, :], inside, 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    end = tl.minimum((part + 1) * span, n)
    weighted_end = end
    if WEIGHTED:
        weighted_end = tl.where(weight >= 0, end, 0)
    for begin in range(part * span, end, KEYS):
        entry = begin + j
        there = entry < end
        if PAGE == 0:
            k_from, v_from = entry.to(tl.int64) * k_row, entry.to(tl.int64) * v_row
        else:
            at = _paged(pages + first_k, begin, end, page_stride, k_row, PAGE, KEYS)
            k_from = tl.multiple_of(at, UNIT)
            v_from = k_from
        keys = tl.load(k + k_from[None, :] + d[:, None], there[None, :] & (d < D)[:, None], 0.0)
        values = tl.load(v + v_from[:, None] + d[None, :], there[:, None] & (d < D)[None, :], 0.0)
        if WIDEN:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        scores = tl.dot(rows, keys, input_precision=PRECISION) * scale
        if WEIGHTED:
            scores += tl.load(weights + entry, entry < weighted_end, 0.0)[None, :] * 1.4426950408889634
        scores = tl.where(there[None, :], scores, float("-inf"))
        most, total, mixed = absorb(scores, values, most, total, mixed, PRECISION)
    finish(most, total, mixed, out, lse, part_out, part_lse, arrived, problem, part, parts, tl.num_programs(1), G, D,
           ROWS, WIDE, GROUP, AT_ONCE)  # fmt: skip


@triton.jit
def _paged(pages, begin, end, page_stride, row, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """Offsets of the entries of a tile, whose pages are looked up once each."""
    if PAGE < KEYS:
        slot, inner = tl.arange(0, KEYS // PAGE), tl.arange(0, PAGE)
        page = tl.load(pages + begin // PAGE + slot, begin + slot * PAGE < end, 0).to(tl.int64)
        at = tl.reshape(page[:, None] * page_stride + inner[None, :] * row, (KEYS,))
    else:
        page = tl.load(pages + begin // PAGE).to(tl.int64)
        at = page * page_stride + (begin % PAGE + tl.arange(0, KEYS)) * row
    return at
