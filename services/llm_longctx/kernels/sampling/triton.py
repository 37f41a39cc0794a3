"""Sampling on a GPU, or in Triton's interpreter: a program per row, without sorting.

The kernel takes the largest noisy logit and checks the limits for it: how many tokens come before it, and how much
probability they hold. If it is out, everything from it on downwards is out, and the next largest is taken. As the noise
stays, the last one is the largest of those that are left. Imported only where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, power_of_two
from services.llm_longctx.kernels.sampling.reference import GREEDY_BELOW
from services.llm_longctx.kernels.sampling.rows import SamplingRows

_BLOCK = 4096


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """See `sample`."""
    logits = logits.contiguous()
    B, V = logits.shape
    chosen = torch.empty(B, dtype=torch.int64, device=logits.device)
    if B:
        limits = rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.step
        _launch(V)((B,), logits, *limits, chosen, V)
    return chosen


def _launch(vocab: int) -> Launch:
    block = min(power_of_two(vocab, 16), _BLOCK)
    return Launch(_sample, {"BLOCK": block, "GREEDY_BELOW": GREEDY_BELOW}, max(min(block // 512, 8), 1), 2)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield logits in float32 and bfloat16."""
    types = dict.fromkeys(("temperature", "top_p", "min_p"), "*fp32") | dict.fromkeys(("top_k", "step"), "*i32")
    types |= dict.fromkeys(("seed", "chosen"), "*i64")
    for kind in ("fp32", "bf16"):
        launch = _launch(1 << 17)
        aligned = frozenset(("V",))
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
def _largest(logits, V, heat, low, least, bound, bound_at, seed, step, NOISY: tl.constexpr, BLOCK: tl.constexpr):
    """Number of the largest (noisy) logit of at least `least`, below the bound."""
    best = float("-inf")
    chosen = V
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x = _load(logits, i, V)
        order = _order(x)
        score = x
        if NOISY:
            number, _, _, _ = tl.philox(seed, i.to(tl.uint32), step + tl.zeros_like(i), 0 * i, 0 * i)
            u = (number.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10
            # 1 − u loses what a small u knows, and small ones make the largest noise.
            waiting = tl.where(
                u < 0.01, u * (1 + u * (0.5 + u * (1 / 3 + u * 0.25))), -tl.log(1 - tl.minimum(u, 0.99999994))
            )
            score = x * heat - tl.log(waiting)
        open_ = (order > bound) | ((order == bound) & (i < bound_at))
        score = tl.where(open_ & (x >= least) & (i < V), score, float("-inf"))
        most = tl.max(score, 0)
        at = tl.min(tl.where((score == most) & (score > float("-inf")), i, V), 0)
        chosen = tl.where(most > best, at, chosen)
        best = tl.maximum(best, most)
    return chosen


@triton.jit
def _kth(logits, V, k, BLOCK: tl.constexpr):
    """Order of the k-th largest logit, found by halving the range of all orders."""
    low, high = tl.full((), -2147483648, tl.int64), tl.full((), 2147483647, tl.int64)
    # The smallest order that fewer than k logits exceed.
    while low < high:
        middle = (low + high) >> 1
        above = 0
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            above += tl.sum(((_order(_load(logits, i, V)).to(tl.int64) > middle) & (i < V)).to(tl.int32), 0)
        low = tl.where(above < k, low, middle + 1)
        high = tl.where(above < k, middle, high)
    return low


@triton.jit
def _held(logits, V, heat, top, least, bound, bound_at, BLOCK: tl.constexpr):
    """How many logits come before (bound, bound_at), and the mass of those of at least `least`."""
    count = 0
    mass = 0.0
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x = _load(logits, i, V)
        order = _order(x).to(tl.int64)
        first = ((order > bound) | ((order == bound) & (i < bound_at))) & (x >= least) & (i < V)
        count += tl.sum(first.to(tl.int32), 0)
        mass += tl.sum(tl.where(first, tl.exp((x - top) * heat), 0.0), 0)
    return count, mass


@triton.jit
def _sample(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    step,
    chosen,
    V,
    BLOCK: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * V
    heat, k, p, share = (tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row))
    number, at = tl.load(seed + row), tl.load(step + row)
    none = tl.full((), -2147483648, tl.int64)
    lowest = tl.full((), float("-inf"), tl.float32)
    likeliest = _largest(logits, V, 1.0, 0, lowest, none, V, number, at, False, BLOCK)
    if heat < GREEDY_BELOW:
        tl.store(chosen + row, likeliest.to(tl.int64))
    else:
        top = tl.load(logits + likeliest).to(tl.float32)
        by = 1 / heat
        least = tl.where(share > 0, top + tl.log(tl.maximum(share, 1e-38)) * heat, lowest)
        whole = 0.0
        if p < 1:
            end = none
            if (k > 0) & (k < V):
                end = _kth(logits, V, k, BLOCK)
            above, mass = _held(logits, V, by, top, least, end, 0, BLOCK)
            whole = mass
            if (k > 0) & (k < V):
                # Of those that equal the k-th largest, as many as are missing.
                same = tl.where(end >= 0, end, end ^ 0x7FFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
                weight = tl.where(same >= least, tl.exp((same - top) * by), 0.0)
                whole = mass + (k - above) * weight
        bound = none
        bound_at = V
        token = _largest(logits, V, by, 0, least, bound, bound_at, number, at, True, BLOCK)
        searching = (p < 1) | (k > 0)
        while searching:
            order = _order(tl.load(logits + token).to(tl.float32)).to(tl.int64)
            rank, before = _held(logits, V, by, top, least, order, token, BLOCK)
            left = ((k <= 0) | (rank < k)) & ((p >= 1) | (before < tl.maximum(p, 1e-9) * whole))
            if left:
                searching = False
            else:
                bound = order
                bound_at = token
                token = _largest(logits, V, by, 0, least, bound, bound_at, number, at, True, BLOCK)
        tl.store(chosen + row, token.to(tl.int64))
