"""The engine against transformers on the same weights and dtype: reading 4k tokens densely, and decoding after them."""

import statistics
from collections import defaultdict
from typing import Any

import torch

from loadtests.bench.longctx import SHORT, Smol, cpu_seconds, read, smollm2
from loadtests.bench.result import Table, row
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine

STEPS = 16
WANTED = {"prefill fp32": 1.0, "prefill bf16": 1.0, "decode fp32": 1.3, "decode bf16": 2.0}


def measure(rounds: int = 3, count: int = 4096) -> Table:
    """Alternate both at `count` tokens; medians over rounds."""
    taken: dict[str, list[float]] = defaultdict(list)
    with threads(1), torch.inference_mode():
        for dtype in SHORT:
            with smollm2(dtype) as smol:
                theirs = transformers(smol, dtype)
                for _ in range(rounds):
                    compared(taken, smol, theirs, SHORT[dtype], count)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    rows = [
        row(
            name, "s" if "prefill" in name else "ms / token", values, middle[f"transformers, {name.partition(', ')[2]}"]
        )
        for name, values in taken.items()
    ]
    targets = {
        f"{what}: transformers, times ours (at least)": (
            middle[f"transformers, {what}"] / middle[f"ours, {what}"],
            want,
        )
        for what, want in WANTED.items()
    }
    how = "SmolLM2-135M-Instruct, CPU time on one thread, chunks of 512; transformers with SDPA"
    title = f"The engine against transformers, dense, {count:,} tokens"
    return Table("longctx_dense", title, how, "transformers", rows, targets)


def transformers(smol: Smol, dtype: torch.dtype) -> Any:
    """Transformers' own model on the same files, with SDPA."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  # heavy, and only this bench needs it

    model: Any = AutoModelForCausalLM.from_pretrained(smol.folder, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def compared(taken: dict[str, list[float]], smol: Smol, theirs: Any, kind: str, count: int) -> None:
    """One round."""
    ids, held = torch.tensor([smol.ids[: count + STEPS]]), {}

    def prefill() -> None:
        held["cache"] = theirs(ids[:, :count], logits_to_keep=1, use_cache=True).past_key_values

    def decode() -> None:
        for i in range(count, count + STEPS):
            theirs(ids[:, i : i + 1], past_key_values=held["cache"], use_cache=True)

    taken[f"transformers, prefill {kind}"].append(cpu_seconds(prefill))
    taken[f"transformers, decode {kind}"].append(1000 * cpu_seconds(decode) / STEPS)
    s = Engine(smol.net).open()
    taken[f"ours, prefill {kind}"].append(cpu_seconds(lambda: read(s, smol.ids[:count])))
    taken[f"ours, decode {kind}"].append(
        1000 * cpu_seconds(lambda: [s.step(i) for i in smol.ids[count : count + STEPS]]) / STEPS
    )
    s.close()
