"""Parts of kernels: few-bit codes in pairs, one step of a softmax that is added up tile by tile, and a row's merge.

Scores are in base 2 (scaled by log2 e), because a GPU's exponential is. Imported only where Triton is installed. Knows
nothing about where keys and values lie.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def as_pairs(words, WIDEN: tl.constexpr):
    """Words [...] as the two bfloat16 that each holds, [...,2]; in float32 where WIDEN."""
    low = words.to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = (words >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    both = tl.join(low, high)
    return both.to(tl.float32) if WIDEN else both


@triton.jit
def scale_pairs(codes, zeros, scales, rest, WIDEN: tl.constexpr):
    """Words of two bfloat16 each: (codes + zeros) · scales + rest, [...,2]. Each of the two steps is rounded once."""
    zeros, scales = tl.broadcast_to(zeros, codes.shape), tl.broadcast_to(scales, codes.shape)
    rest = tl.broadcast_to(rest, codes.shape)
    if WIDEN:  # as in the interpreter, which has no instructions of a card
        return (as_pairs(codes, True) + as_pairs(zeros, True)) * as_pairs(scales, True) + as_pairs(rest, True)
    # The compiler pairs numbers of different words, and pays for it with as many permutations.
    done = tl.inline_asm_elementwise(
        """{ .reg .b32 sum, one;
        mov.b32 one, 0x3f803f80;
        fma.rn.bf16x2 sum, $1, one, $2;
        fma.rn.bf16x2 $0, sum, $3, $4; }""",
        "=r,r,r,r,r",
        [codes, zeros, scales, rest],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )
    return as_pairs(done, False)


@triton.jit
def float_of(code):
    """Codes as float32: the last bits of 2^23 are units, which is faster than a conversion."""
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def absorb(scores, values, most, total, mixed, PRECISION: tl.constexpr):
    """Add a tile [rows,keys] of scores, −inf where hidden, with its values: the new (most, total, mixed)."""
    now = tl.maximum(most, tl.max(scores, 1))
    # A row that has seen nothing yet has no largest score: −inf − −inf is no number.
    shift = tl.where(now == float("-inf"), 0.0, now)
    shares = tl.exp2(scores - shift[:, None])
    by = tl.exp2(most - shift)
    mixed = tl.dot(shares.to(values.dtype), values, mixed * by[:, None], input_precision=PRECISION)
    return now, total * by + tl.sum(shares, 1), mixed


@triton.jit
def normalize(most, total, mixed):
    """Outputs and log-sum-exp in base 2 of finished rows."""
    some = total > 0
    safe = tl.where(some, total, 1.0)
    return mixed / safe[:, None], tl.where(some, most + tl.log2(safe), float("-inf"))


@triton.jit
def join_parts(part_out, part_lse, first, parts,
               G: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
               AT_ONCE: tl.constexpr):  # fmt: skip
    """Merge parts `first` … of G rows each, [part,G,D] and [part,G]: out [GROUP,WIDE] and its lse in base 2 [GROUP]."""
    g, d = tl.arange(0, GROUP), tl.arange(0, WIDE)
    most = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    mixed = tl.zeros((GROUP, WIDE), tl.float32)
    for begin in range(0, parts, AT_ONCE):
        part = begin + tl.arange(0, AT_ONCE)
        there = (part < parts)[:, None] & (g < G)[None, :]
        row = (first + part)[:, None] * G + g[None, :]
        # Other programs wrote them: nothing may come from a cache of this processor.
        logs = tl.load(part_lse + row, there, float("-inf"), cache_modifier=".cg")
        inside = there[:, :, None] & (d < D)[None, None, :]
        outs = tl.load(part_out + row[:, :, None] * D + d[None, None, :], inside, 0.0, cache_modifier=".cg")
        now = tl.maximum(most, tl.max(logs, 0))
        shift = tl.where(now == float("-inf"), 0.0, now)
        shares, by = tl.exp2(logs - shift[None, :]), tl.exp2(most - shift)
        mixed = mixed * by[:, None] + tl.sum(outs * shares[:, :, None], 0)
        total = total * by + tl.sum(shares, 0)
        most = now
    return normalize(most, total, mixed)


@triton.jit
def finish(most, total, mixed, out, lse, part_out, part_lse, arrived, problem, part, parts, most_parts,
           G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr,
           AT_ONCE: tl.constexpr):  # fmt: skip
    """Store a problem's rows; of several parts, the program that comes last merges them and resets the counter."""
    row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
    mixed, logs = normalize(most, total, mixed)
    inside = (row < G)[:, None] & (d < D)[None, :]
    if parts == 1:
        place = problem * G + row
        tl.store(out + place[:, None] * D + d[None, :], mixed.to(out.dtype.element_ty), inside)
        tl.store(lse + place, logs * LN2, row < G)
    else:
        place = (problem * most_parts + part) * G + row
        tl.store(part_out + place[:, None] * D + d[None, :], mixed, inside)
        tl.store(part_lse + place, logs, row < G)
        # All threads' stores come before the one thread's release.
        tl.debug_barrier()
        if tl.atomic_add(arrived + problem, 1, sem="acq_rel") == parts - 1:
            joined, sums = join_parts(part_out, part_lse, problem * most_parts, parts, G, D, GROUP, WIDE, AT_ONCE)
            g = tl.arange(0, GROUP)
            to = problem * G + g
            whole = (g < G)[:, None] & (d < D)[None, :]
            tl.store(out + to[:, None] * D + d[None, :], joined.to(out.dtype.element_ty), whole)
            tl.store(lse + to, sums * LN2, g < G)
            tl.store(arrived + problem, 0)


@triton.jit
def add_parts(acc, other, sums, arrived, task, part, parts, OUT: tl.constexpr, ROWS: tl.constexpr,
              GATED: tl.constexpr):  # fmt: skip
    """Store a part's sums; the program that comes last gets the sums of all, and resets the counter."""
    tile: tl.constexpr = OUT * ROWS
    cell = tl.arange(0, OUT)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    mine = sums + (task * parts + part).to(tl.int64) * (2 * tile)
    tl.store(mine + cell, acc)
    if GATED:
        tl.store(mine + tile + cell, other)
    # All threads' stores come before the one thread's release.
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived + task, 1, sem="acq_rel") == parts - 1
    if is_last:
        tl.store(arrived + task, 0)
        acc = tl.zeros((OUT, ROWS), tl.float32)
        other = tl.zeros((OUT, ROWS), tl.float32)
        for p in range(0, parts):
            theirs = sums + (task * parts + p).to(tl.int64) * (2 * tile)
            acc += tl.load(theirs + cell, cache_modifier=".cg")
            if GATED:
                other += tl.load(theirs + tile + cell, cache_modifier=".cg")
    return acc, other, is_last


@triton.jit
def store_product(acc, other, bias, second_bias, out, n, m, M, N, BIASED: tl.constexpr, SECOND_BIASED: tl.constexpr,
                  GATED: tl.constexpr):  # fmt: skip
    """Add biases to products [out,row], open the gate if there is one, and store rows [M,N]."""
    inside = (n < N)[:, None] & (m < M)[None, :]
    if BIASED:
        acc += tl.load(bias + n, n < N, 0.0).to(tl.float32)[:, None]
    if GATED:
        if SECOND_BIASED:
            other += tl.load(second_bias + n, n < N, 0.0).to(tl.float32)[:, None]
        acc = acc * tl.sigmoid(tl.maximum(acc, -80.0)) * other
    tl.store(out + m[None, :].to(tl.int64) * N + n[:, None], acc.to(out.dtype.element_ty), inside)
