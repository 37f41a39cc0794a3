"""What the attention methods' sparsity claims rest on: shares that SmolLM2 really reads, time against dense, needles.

The served model in bfloat16 on prose. Methods that read prompts sparsely are timed on the last 512 tokens before
`count`, the others on decode steps after `count`; dense and the method take turns, at least 30 times. Wall time of
whole-model calls. The needle lies at three depths.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loadtests.bench.claiming import Claims, timing
from loadtests.bench.result import Row, row
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.methods import AttentionMethod, method, methods
from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.models.smollm2 import SmolLM2
from shared.lm.gguf_file import unpack
from shared.lm.head_plan import HeadPlan
from shared.lm.niah_prompts import NEEDLES, build_haystack, build_needle_prompt
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder

RUNS, CHUNK, TAIL = 30, 512, 512
DEPTHS, NEEDLE_TOKENS = (0, 50, 100), 1000
PLAN = Path(__file__).parents[3] / "services/llm_longctx/weights/heads/smollm2-135m-instruct/default.json"

KNOBS: Mapping[str, Mapping[str, Any]] = {
    "duo": {"sink": 64, "recent": 256}, "razor": {"window_min": 256, "window_div": 16},
    "recycled": {"budget": 512, "stride": 16}, "flexprefill": {"min_budget": 256}, "dhsa": {"budget": 512},
    "power": {"block": 64},
}  # fmt: skip
"""Scaled to 4,096 tokens: the papers' windows and budgets are as long as that."""

EVICTED: Mapping[str, Any] = {"budget": 512}
"""Entries that every method that evicts by scores keeps per head, an eighth of 4,096; the rest are defaults."""


def contenders() -> Mapping[str, Mapping[str, Any]]:
    """Knobs by method: those above, and of each that evicts by scores, save one that wants maps nobody trained."""
    evicts = [
        name
        for name, kind in methods().items()
        if issubclass(kind, EvictionMethod) and "surrogates" not in kind.model_fields
    ]
    return {**KNOBS, **dict.fromkeys(evicts, EVICTED)}


@dataclass(frozen=True)
class Bench:
    """The loaded model and a text of so many tokens."""

    engine: Engine
    tokenizer: Tokenizer
    ids: list[int]
    plan: HeadPlan

    def read(self, how: AttentionMethod, tokens: int) -> OpenSequence:
        """A sequence that has read the first so many tokens as prompts are served."""
        s = self.engine.open(how, self.plan if how.needs_plan else None)
        s.state.reserve(tokens, 2 * CHUNK)
        for begin in range(0, tokens, CHUNK):
            chunk = self.ids[begin : min(begin + CHUNK, tokens)]
            s.runner.prefill(s.state, chunk, last=begin + CHUNK >= tokens, keep=1)
        return s


def measure(rounds: int = RUNS, count: int = 4096) -> Claims:
    """Claims' facts at `count` tokens; `rounds` calls each."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(Path(folder), count)
    dense_score = _recall(bench, method("dense"))
    claims, rows = {}, []
    for name, knobs in contenders().items():
        how = method(name, **knobs)
        facts, taken = (_reading if how.granularity == "block" else _decoding)(bench, how, count, rounds)
        depths = [depth / 100 for depth in DEPTHS]
        facts["retrieval"] = {"depths": depths, "score": _recall(bench, how), "dense_score": dense_score}
        facts["knobs"] = dict(knobs)
        claims[name] = facts
        rows += _rows(name, facts, taken)
    return Claims(
        suite="sparsity",
        title=f"What sparsity claims rest on, {count:,} tokens",
        baseline="dense",
        how=f"SmolLM2-135M-Instruct in bfloat16, {torch.get_num_threads()} thread(s) of torch, wall time of the whole "
        f"model's calls in turn, {rounds} each; needles in {NEEDLE_TOKENS:,} tokens at depths {DEPTHS} percent",
        rows=rows,
        claims=claims,
    )


def _bench(folder: Path, count: int) -> Bench:
    files = unpack(SmolLM2.source(), folder, torch.bfloat16)
    model, tokenizer = load_decoder(files, torch.bfloat16, "cpu"), Tokenizer.from_folder(files)
    ids = tokenizer.encode(build_haystack(6 * (count + RUNS), 1), special=False)[:count]
    return Bench(Engine(model), tokenizer, ids, HeadPlan.read(PLAN))


def _reading(bench: Bench, how: AttentionMethod, count: int, rounds: int) -> tuple[dict[str, Any], _Taken]:
    """The last tokens before `count`, read again and again on what was read before it."""
    chunk = bench.ids[count - TAIL :]
    begun = {name: bench.read(h, count - TAIL) for name, h in (("dense", method("dense")), (how.name, how))}
    for s in begun.values():
        s.state.prompt_length = count
    seen: dict[str, OpenSequence] = {}

    def again(name: str) -> Callable[[], None]:
        def work() -> None:
            if name in seen:
                seen.pop(name).close()
            twin = seen[name] = begun[name].fork()
            twin.state.densities.clear()
            twin.runner.prefill(twin.state, chunk, last=True, keep=1)

        return work

    taken = _in_turn({name: again(name) for name in begun}, rounds)
    densities, held = [share for share, _ in seen[how.name].state.densities], seen[how.name].kv_bytes()
    if dense := densities.count(1.0):
        raise ValueError(f"{how.name} read {dense} layers densely at {count} tokens")
    for s in (*seen.values(), *begun.values()):
        s.close()
    return _facts(bench, how, taken, densities, held, count), taken


def _decoding(bench: Bench, how: AttentionMethod, count: int, rounds: int) -> tuple[dict[str, Any], _Taken]:
    """Steps after `count` tokens."""
    open_ones = {name: bench.read(h, count) for name, h in (("dense", method("dense")), (how.name, how))}

    shares: list[np.ndarray] = []
    taken = _in_turn(
        {name: partial(s.step, bench.ids[0]) for name, s in open_ones.items()},
        rounds,
        lambda: shares.append(_read_share(open_ones[how.name])),
    )
    held = open_ones[how.name].kv_bytes()
    for s in open_ones.values():
        s.close()
    return _facts(bench, how, taken, np.mean(shares, axis=0).tolist(), held, count), taken


def _read_share(s: OpenSequence) -> np.ndarray:
    """Share of all entries that the next step reads, per layer."""
    config, cache, total = s.policy.config, s.state.cache, s.state.cache.length
    if cache.compact.n.any() and (total - s.state.prompt_length + 1) % getattr(s.policy.method, "stride", 1):
        return np.asarray(cache.compact.n.mean(1) / total)
    held = [[len(s.entries(l, g).positions) for g in range(config.kv_heads)] for l in range(config.layers)]
    return np.mean(held, axis=1) / total


_Taken = dict[str, list[float]]


def _in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, seen: Callable[[], None] = lambda: None) -> _Taken:
    taken: _Taken = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if i >= 2:  # the first ones pay for lazy set-up
                taken[name].append(1e3 * (time.perf_counter() - begun))
        seen()
    return taken


def _facts(
    bench: Bench, how: AttentionMethod, taken: _Taken, densities: list[float], held: int, count: int
) -> dict[str, Any]:
    """A claim's measured part, and the shares that were not read, per layer."""
    engine, (dense, ours) = bench.engine, (taken["dense"], taken[how.name])
    weights = sum(p.numel() * p.element_size() for p in engine.model.parameters())
    knobs = ", ".join(f"{k} {v}" for k, v in contenders()[how.name].items())
    return {
        "sparsity_by_layer": {f"model.layers.{i}.self_attn": round(1 - d, 6) for i, d in enumerate(densities)},
        "theoretical_flops_ratio": round(float(np.mean(densities)), 6),
        "measured": timing(
            ours,
            dense,
            batch=1,
            sequence=count,
            dtype="bfloat16",
            kernel=f"{engine.kernels}, {how.name} ({knobs})",
            dense_kernel=f"{engine.kernels}, dense",
            peak_memory_bytes=weights + held,
            kv_bytes_per_token=held / count,
            offload_bytes_per_token=0,
        ),
    }


def _recall(bench: Bench, how: AttentionMethod) -> float:
    """Share of a hidden sentence's tokens that are likeliest, the ones before them given; mean over depths."""
    found = []
    for depth in DEPTHS:
        for what in NEEDLES[:1]:
            prompt = build_needle_prompt(bench.tokenizer, what, NEEDLE_TOKENS, depth, seed=1)
            s = replace(bench, ids=prompt.ids).read(how, len(prompt.ids))
            found += [int(s.step(token).argmax()) == after for token, after in pairwise(prompt.answer_ids)]
            s.close()
    return float(np.mean(found))


def _rows(name: str, facts: Mapping[str, Any], taken: _Taken) -> list[Row]:
    base = statistics.median(taken["dense"])
    lost, score = 1 - facts["theoretical_flops_ratio"], facts["retrieval"]["score"]
    note = f"reads {1 - lost:.2f} of dense attention; needle {score:.2f}, dense {facts['retrieval']['dense_score']:.2f}"
    return [row(f"dense beside {name}", "ms", taken["dense"], base), row(name, "ms", taken[name], base, note)]
