"""Sampling on a GPU, or in Triton's interpreter: a program per row, without sorting.

The limits leave the first tokens of an order, by logit and then by number. Where they end is found by narrowing the
range of all logits, in each pass to a quarter; then the mass of what is left is added up to the row's share of it.
Imported only where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, power_of_two
from services.llm_longctx.kernels.sampling.rows import GREEDY_BELOW, SamplingRows

_BLOCK = 4096


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """See `sample`."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    B, V = logits.shape
    chosen = torch.empty(B, dtype=torch.int64, device=logits.device)
    if B:
        settings = rows.on(logits.device)
        _launch(V)((B,), logits, settings, chosen, logits.stride(0), settings.stride(0), V)
    return chosen


def _launch(vocab: int) -> Launch:
    block = min(power_of_two(vocab, 16), _BLOCK)
    constants = {"BLOCK": block, "QUARTERS": 4, "GREEDY_BELOW": GREEDY_BELOW}
    return Launch(_sample, constants, max(min(block // 512, 8), 1), 2)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield logits in float32 and bfloat16."""
    types = {"settings": "*fp64", "chosen": "*i64"}
    aligned = frozenset(("V", "row_stride"))
    for kind in ("fp32", "bf16"):
        launch = _launch(1 << 17)
        yield Variant(
            "sampling", f"logits in {kind}", launch, types | {"logits": f"*{kind}"}, aligned, False, False, 0.85
        )


@triton.jit
def _order(x):
    """Whole numbers in the order of the float32 numbers x."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # −0 is 0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _load(logits, i, V):
    return tl.load(logits + i, i < V, float("-inf")).to(tl.float32)


@triton.jit
def _likeliest(logits, V, BLOCK: tl.constexpr):
    """Number of the largest logit."""
    best = float("-inf")
    chosen = 0
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x = _load(logits, i, V)
        most = tl.max(x, 0)
        at = tl.min(tl.where((x == most) & (i < V), i, V), 0)
        chosen = tl.where(most > best, at, chosen)
        best = tl.maximum(best, most)
    return chosen


@triton.jit
def _weigh(x, i, V, by, top, least, mass):
    """Masses of logits, relative to the largest; zero under `least`. Without masses, each token counts 1."""
    weights = tl.where(mass, tl.where(x >= least, tl.exp((x - top) * by), 0.0), 1.0)
    return tl.where(i < V, weights, 0.0)


@triton.jit
def _mass(logits, V, by, top, least, bound, bound_at, mass, BLOCK: tl.constexpr):
    """Weight of the tokens before (bound, bound_at)."""
    whole = 0.0
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x = _load(logits, i, V)
        order = _order(x)
        before = (order > bound) | ((order == bound) & (i < bound_at))
        whole += tl.sum(tl.where(before, _weigh(x, i, V, by, top, least, mass), 0.0), 0)
    return whole


@triton.jit
def _left(logits, begin, V, by, top, least, bound, bound_at, ties, BLOCK: tl.constexpr):
    """Masses of a block's tokens before (bound, bound_at); with ties, 1 for each that equals the bound."""
    i = begin + tl.arange(0, BLOCK)
    x = _load(logits, i, V)
    order = _order(x)
    same = (order == bound) & (ties | (i < bound_at))
    counts = same | ((order > bound) & (not ties))
    return tl.where(counts, _weigh(x, i, V, by, top, least, not ties), 0.0)


@triton.jit
def _find(logits, V, by, top, least, bound, bound_at, target, ties, BLOCK: tl.constexpr):
    """First token at which what is left exceeds the target; with ties, tokens that equal the bound count instead."""
    begin = 0
    held = 0.0
    searching = True
    while searching:
        more = tl.sum(_left(logits, begin, V, by, top, least, bound, bound_at, ties, BLOCK), 0)
        if (held + more > target) | (begin + BLOCK >= V):
            searching = False
        else:
            held += more
            begin += BLOCK
    weights = _left(logits, begin, V, by, top, least, bound, bound_at, ties, BLOCK)
    i = begin + tl.arange(0, BLOCK)
    at = tl.min(tl.where((held + tl.cumsum(weights, 0) > target) & (weights > 0), i, V), 0)
    # Sums are rounded: where none exceeds the target, it is the last one's.
    return tl.where(at < V, at, tl.max(tl.where(weights > 0, i, -1), 0))


@triton.jit
def _cut(logits, V, by, top, least, target, mass, QUARTERS: tl.constexpr, BLOCK: tl.constexpr):
    """Where a prefix of the order ends: tokens stay while those before them weigh less than the target."""
    low = -2147483648
    step = 1 << 30
    quarter = tl.arange(0, QUARTERS)
    # The smallest logit with less than the target above it.
    while step > 0:
        marks = low + step * quarter
        above = tl.zeros((QUARTERS,), tl.float32)
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            x = _load(logits, i, V)
            weights = _weigh(x, i, V, by, top, least, mass)
            above += tl.sum(tl.where(_order(x)[:, None] >= marks[None, :], weights[:, None], 0.0), 0)
        low += step * tl.sum(((above >= target) & (quarter > 0)).to(tl.int32), 0)
        step = step >> 2
    above = _mass(logits, V, by, top, least, low, 0, mass, BLOCK)
    # Of those that equal it, as many as still fit.
    same = tl.where(low >= 0, low, low ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)
    weight = tl.maximum(_weigh(same, 0, V, by, top, least, mass), 1e-38)
    many = tl.maximum(tl.ceil((target - above) / weight), 1.0)
    return low, _find(logits, V, by, top, least, low, V, many - 1, True, BLOCK) + 1


@triton.jit
def _sample(logits, settings, chosen, row_stride, stride, V,
            BLOCK: tl.constexpr, QUARTERS: tl.constexpr, GREEDY_BELOW: tl.constexpr):  # fmt: skip
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    settings += row
    heat = tl.load(settings).to(tl.float32)
    k = tl.load(settings + stride).to(tl.int32)
    p = tl.load(settings + 2 * stride).to(tl.float32)
    min_p = tl.load(settings + 3 * stride).to(tl.float32)
    share = tl.minimum(tl.load(settings + 4 * stride).to(tl.float32), 0.99999994)  # rounded, it may be 1
    token = _likeliest(logits, V, BLOCK)
    if heat >= GREEDY_BELOW:
        top = tl.load(logits + token).to(tl.float32)
        by = 1 / heat
        least = tl.where(min_p > 0, top + tl.log(tl.maximum(min_p, 1e-38)) * heat, float("-inf"))
        bound = -2147483648
        bound_at = V
        whole = _mass(logits, V, by, top, least, bound, bound_at, True, BLOCK)
        for limit in range(0, 2):  # first top_k, then top_p of what it left
            mass = limit == 1
            if tl.where(mass, p < 1, (k > 0) & (k < V)):
                target = tl.where(mass, tl.maximum(p, 1e-9) * whole, k.to(tl.float32))
                end, end_at = _cut(logits, V, by, top, least, target, mass, QUARTERS, BLOCK)
                closer = (end > bound) | ((end == bound) & (end_at < bound_at))
                bound, bound_at = tl.where(closer, end, bound), tl.where(closer, end_at, bound_at)
                whole = _mass(logits, V, by, top, least, bound, bound_at, True, BLOCK)
        found = _find(logits, V, by, top, least, bound, bound_at, share * whole, False, BLOCK)
        token = tl.where(found < 0, token, found)
    tl.store(chosen + row, token.to(tl.int64))
