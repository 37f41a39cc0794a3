"""Reading SmolLM2's whole prompt block-sparsely against reading it densely in the same engine, at 7.5k tokens.

Dense comes twice: on the engine's own kernels, and on torch's (`cpu_torch`), which is what an engine without block
kernels would do. Density is of causal blocks; agreement is the share of positions at which the next token is the same.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from loadtests.bench.longctx import CHUNK, SHORT, Smol, cpu_seconds, read, smollm2
from loadtests.bench.result import Table, row
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import AttentionMethod, method

DENSE, TORCH = "dense", "dense on torch's kernels"
WANTED = {"fp32": 1.5, "bf16": 2.5}


def contenders() -> Mapping[str, AttentionMethod]:
    """At about a quarter of the causal blocks, the first rows and the diagonal included."""
    return {
        "dhsa": method("dhsa", variant="topk", block=128, key_block=64, density=0.22),
        "flexprefill": method("flexprefill", gamma=0.85, min_budget=256),
    }


def measure(rounds: int = 1, count: int = 7500) -> Table:
    """Alternate all; medians over rounds. Agreement and torch's kernels are looked at once, in bfloat16."""
    taken: dict[str, list[float]] = defaultdict(list)
    notes: dict[str, str] = {}
    with threads(1), torch.inference_mode():
        for dtype, kind in SHORT.items():
            with smollm2(dtype) as smol:
                known = None
                for at in range(rounds):
                    for name, how in {DENSE: method("dense"), **contenders()}.items():
                        s = Engine(smol.net).open(how)
                        taken[f"{name} {kind}"].append(cpu_seconds(lambda s=s: read(s, smol.ids[:count])))
                        if at == 0 and dtype == torch.bfloat16:
                            known, notes[f"{name} {kind}"] = noted(smol, how, known, count, s.state.prefill_density)
                        s.close()
                if dtype == torch.bfloat16:
                    s = Engine(smol.net, backend="cpu_torch").open()
                    taken[f"{TORCH} {kind}"].append(cpu_seconds(lambda s=s: read(s, smol.ids[:count])))
                    s.close()
    middle = {name: statistics.median(values) for name, values in taken.items()}
    rows = [
        row(name, "s", values, middle[f"{DENSE} {name.rpartition(' ')[2]}"], notes.get(name, ""))
        for name, values in taken.items()
    ]
    targets = {}
    for kind, want in WANTED.items():
        best = min(middle[f"{name} {kind}"] for name in contenders())
        targets[f"sparse {kind}, times dense"] = (middle[f"{DENSE} {kind}"] / best, want)
        if f"{TORCH} {kind}" in middle:
            targets[f"sparse {kind}, times dense on torch's kernels"] = (middle[f"{TORCH} {kind}"] / best, want)
    how = "SmolLM2-135M-Instruct, CPU seconds on one thread, chunks of 512 as served"
    return Table("longctx_sparse", f"Reading {count:,} tokens sparsely", how, DENSE, rows, targets)


def noted(smol: Smol, how: AttentionMethod, known: Tensor | None, count: int, density: float) -> tuple[Tensor, str]:
    """The tokens foreseen densely, and a note on how a method's differ."""
    if known is None:
        return foreseen(smol, how, count), ""
    agreed = float((foreseen(smol, how, count) == known).float().mean())
    return known, f"density {density:.3f}, top-1 agreement {agreed:.3f}"


def foreseen(smol: Smol, how: AttentionMethod, count: int) -> Tensor:
    """The likeliest next token at every position [count]."""
    s = Engine(smol.net).open(how)
    chunks = [min(CHUNK, count - begin) for begin in range(0, count, CHUNK)]
    found = s.prefill(smol.ids[:count], chunks).argmax(-1)
    s.close()
    return found
