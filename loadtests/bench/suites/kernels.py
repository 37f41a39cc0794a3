"""Attention kernels: block-sparse prefill against torch's dense one, and decode over less than everything.

One layer of SmolLM2's shape (9 query and 3 key/value heads of 64). Blocks of 128 are random with the first column and
the diagonal kept, chosen per group of query heads (one key/value head) or per query head. CPU seconds on one thread, so
that neighbours on a machine weigh less; contenders in turn.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from loadtests.bench.longctx import SHORT
from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import threads
from services.llm_longctx.kernels import BlockCsr, backends, block_sparse_prefill, decode

HEADS, KV_HEADS, D, BLOCK = 9, 3, 64, 128
LONG, COPY, ENDS = 32768, 2048, 320
DENSITIES = (0.25, 0.5)
CHOSEN = {"per group": KV_HEADS, "per head": HEADS}
"""Whose blocks are chosen together: the query heads of a group share products where they share blocks."""


def measure(rounds: int = 5, count: int = 8192) -> Table:
    """Prefill at `count` tokens and decode at 32k; medians over rounds."""
    taken: dict[str, list[float]] = defaultdict(list)
    with threads(1), torch.inference_mode():
        for dtype in SHORT:
            for contenders in (prefills(dtype, count), decodes(dtype)):
                for run in contenders.values():
                    run()
                for _ in range(rounds):
                    for name, run in contenders.items():
                        taken[name].append(1e3 * seconds(run))
    return table(taken, count)


def blocks(tokens: int, density: float, heads: int, seed: int = 0) -> BlockCsr:
    """Random causal blocks of about that density."""
    n = -(-tokens // BLOCK)
    total, forced = n * (n + 1) // 2, 2 * n - 1
    chance = max(density * total - forced, 0) / max(total - forced, 1)
    kept = torch.rand(heads, n, n, generator=torch.Generator().manual_seed(seed)) < chance
    kept[:, :, 0] = True
    return BlockCsr.from_mask(kept | torch.eye(n, dtype=torch.bool), BLOCK)


def density(tokens: int, about: float, heads: int) -> float:
    """The entries that `blocks` really keep."""
    return blocks(tokens, about, heads).density()


def prefills(dtype: torch.dtype, tokens: int) -> Mapping[str, Callable[[], object]]:
    """Dense, and each back end at two densities, with blocks per group and per query head."""
    name, q, (k, v) = SHORT[dtype], random(HEADS, tokens, dtype=dtype), random(2, KV_HEADS, tokens, dtype=dtype)
    sdpa, whole = functional.scaled_dot_product_attention, (q[None], k[None], v[None])
    found: dict[str, Callable[[], object]] = {f"SDPA {name}": partial(sdpa, *whole, is_causal=True, enable_gqa=True)}
    for backend in [b for b in backends() if b in {"cpu_torch", "cpu_ext"}]:
        for (whose, heads), density in product(CHOSEN.items(), DENSITIES):
            kept = blocks(tokens, density, heads)
            run = partial(block_sparse_prefill, q, k, v, kept, backend=backend)
            found[f"{backend} {whose} {name} {density:g}"] = run
    return found


def decodes(dtype: torch.dtype) -> Mapping[str, Callable[[], object]]:
    """One step over everything, over Recycled's copy, and with one full head of three."""
    name, q = SHORT[dtype], random(KV_HEADS, HEADS // KV_HEADS, dtype=dtype)
    k, v = (list(random(KV_HEADS, LONG, dtype=dtype)) for _ in "kv")
    copies = [[x[:COPY].clone() for x in held] for held in (k, v)]
    ends = [[held[0], *(x[:ENDS].clone() for x in held[1:])] for held in (k, v)]
    return {
        f"decode dense {name}": step(q, k, v, 4),
        f"decode Recycled {name}": step(q, copies[0], copies[1], 40),
        f"decode Duo {name}": step(q, ends[0], ends[1], 10),
    }


def step(q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], times: int) -> Callable[[], object]:
    """One contender, repeated so that a clock can see it; `seconds` divides."""

    def run() -> int:
        for _ in range(times):
            decode(q, k, v)
        return times

    return run


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    times = run()
    return (time.process_time() - begun) / (times if isinstance(times, int) else 1)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    """Normal entries of width D."""
    return torch.randn(*shape, D).to(dtype)


def table(taken: Mapping[str, Sequence[float]], tokens: int) -> Table:
    """Rows against the dense row of their kind, and the targets."""
    middle = {name: statistics.median(times) for name, times in taken.items()}
    rows: list[Row] = []
    for name, times in taken.items():
        kind = next(word for word in name.split() if word in {"fp32", "bf16"})
        baseline = f"decode dense {kind}" if name.startswith("decode") else f"SDPA {kind}"
        rows.append(row(name, "ms", times, middle[baseline], f"{middle[baseline] / middle[name]:.1f}× faster"))
    targets = {}
    for kind, wanted in (("fp32", {"cpu_torch": 2.5, "cpu_ext": 3.5}), ("bf16", {"cpu_ext": 5.0})):
        for (backend, least), (whose, heads) in product(wanted.items(), CHOSEN.items()):
            if (name := f"{backend} {whose} {kind} 0.25") in middle:
                targets[f"{name} against SDPA"] = (middle[f"SDPA {kind}"] / middle[name], least)
                share = density(tokens, 0.5, heads) / density(tokens, 0.25, heads)
                ratio = middle[f"{backend} {whose} {kind} 0.5"] / middle[name] / share
                targets[f"{backend} {whose} {kind}: time over density, from 0.25 to 0.5 (0.85 – 1.15)"] = (ratio, 1.0)
        dense, duo = middle[f"decode dense {kind}"], middle[f"decode Duo {kind}"]
        targets[f"Recycled {kind} against dense"] = (dense / middle[f"decode Recycled {kind}"], 15.0)
        ideal = dense * (LONG + (KV_HEADS - 1) * ENDS) / (KV_HEADS * LONG)
        targets[f"Duo {kind}: ideal over measured"] = (ideal / duo, 1 / 1.15)
    how = (
        f"One layer, 9 query and 3 key/value heads of 64, {tokens:,} tokens read, decode at {LONG:,}, CPU ms, 1 thread"
    )
    return Table("kernels", "Attention kernels", how, "dense", rows, targets)
