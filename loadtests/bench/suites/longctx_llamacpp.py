"""The engine in bfloat16 against llama.cpp on the same GGUF file, both on two threads: reading and decoding.

The file's weights have four bits; llama.cpp multiplies them as they are, the engine widens them once. Figures of
llama.cpp are its own timings of a completion. It runs in a process of its own, which is stopped while it is not asked:
its idle threads keep the processor busy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection

import torch

from loadtests.bench.longctx import HOW, ROLES, gguf, read, seconds, smollm2, step, threads
from loadtests.bench.result import Table, row
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import AttentionMethod, method

SHORTER, LONGER = 4096, 7500
STEPS = 32


def measure(rounds: int = 3, count: int = SHORTER) -> Table:
    """Alternate both at `count` tokens; medians over rounds. Long prompts are read once: only steps are compared."""
    taken: dict[str, list[float]] = defaultdict(list)
    with threads(), torch.inference_mode(), smollm2(torch.bfloat16) as smol, closing(LlamaCpp()) as server:
        engine = Engine(smol.net)
        longer = {name: engine.open(how) for name, how in decoders().items()}
        for s in longer.values():
            read(s, smol.ids[:LONGER])
        for at in range(rounds):
            alternate(taken, smol.ids[at : count + at], engine, server)
        for _ in range(rounds):
            times = server.completed(smol.ids[:LONGER], again=True)
            taken[f"llama.cpp, decode at {LONGER}"].append(times["predicted_per_token_ms"])
            for name, s in longer.items():
                taken[f"{name}, decode at {LONGER}"].append(step(s, smol.ids[:STEPS]))
    return table(taken)


def decoders() -> Mapping[str, AttentionMethod]:
    """Methods that decode over less than everything."""
    return {
        "dense": method("dense"),
        "duo": method("duo", roles=ROLES),
        "razor": method("razor", roles=ROLES, window_min=256, window_div=16),
        "recycled": method("recycled", budget=1024, stride=50),
    }


def sparse() -> Mapping[str, AttentionMethod]:
    """Methods that read less than everything, at about a quarter of the causal blocks."""
    return {"dhsa": method("dhsa", variant="topk", block=128, key_block=64, density=0.22)}


class LlamaCpp:
    """A llama.cpp server in a process of its own, on two threads, without prompt cache."""

    def __init__(self) -> None:
        start = multiprocessing.get_context("spawn")
        self._ours, theirs = start.Pipe()
        self._process = start.Process(target=_serve, args=(theirs, str(gguf())), daemon=True)
        self._process.start()
        theirs.close()  # or a process that could not start would be waited for
        self._ours.recv()
        self._send(signal.SIGSTOP)

    def completed(self, prompt: Sequence[int], *, again: bool = False) -> dict[str, float]:
        """Its timings of one completion; `again` lets it keep the prompt, so that only its first reading counts."""
        asked = {"prompt": list(prompt), "n_predict": STEPS, "temperature": 0, "cache_prompt": again}
        self._send(signal.SIGCONT)
        self._ours.send(asked | {"ignore_eos": True})
        times: dict[str, float] = self._ours.recv()
        self._send(signal.SIGSTOP)
        return times

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _send(self, what: signal.Signals) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, what)


def _serve(pipe: Connection, model: str) -> None:
    import xllamacpp  # noqa: PLC0415  # installed by `make bench`

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.verbosity, params.cache_prompt = 8192, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(params)
    pipe.send("ready")
    while True:
        answer = server.handle_completions(pipe.recv())
        pipe.send((json.loads(answer) if isinstance(answer, str) else answer)["timings"])


def alternate(taken: dict[str, list[float]], prompt: Sequence[int], engine: Engine, server: LlamaCpp) -> None:
    """One round at the shorter length."""
    times = server.completed(prompt)
    taken[f"llama.cpp, prefill at {SHORTER}"].append(times["prompt_ms"])
    taken[f"llama.cpp, decode at {SHORTER}"].append(times["predicted_per_token_ms"])
    for name, how in {"dense": method("dense"), **sparse()}.items():
        s = engine.open(how)
        taken[f"{name}, prefill at {SHORTER}"].append(1000 * seconds(lambda s=s: read(s, prompt)))
        if name == "dense":
            taken[f"dense, decode at {SHORTER}"].append(step(s, prompt[:STEPS]))
        s.close()


def table(taken: Mapping[str, Sequence[float]]) -> Table:
    """Rows against llama.cpp at the same length."""
    middle = {name: statistics.median(values) for name, values in taken.items()}
    rows = [
        row(name, "ms" if "prefill" in name else "ms / token", values, middle[f"llama.cpp, {name.partition(', ')[2]}"])
        for name, values in taken.items()
    ]

    def times(what: str, names: Sequence[str]) -> float:
        return middle[f"llama.cpp, {what}"] / min(middle[f"{name}, {what}"] for name in names)

    longer = [name for name in decoders() if name != "dense"]
    targets = {
        f"dense decode at {SHORTER}, times llama.cpp": (times(f"decode at {SHORTER}", ["dense"]), 1.0),
        f"duo, razor or recycled decode at {LONGER}, times llama.cpp": (times(f"decode at {LONGER}", longer), 2.0),
        f"dense prefill at {SHORTER}, times llama.cpp": (times(f"prefill at {SHORTER}", ["dense"]), 2.0),
        f"dhsa prefill at {SHORTER}, times llama.cpp": (times(f"prefill at {SHORTER}", list(sparse())), 3.0),
    }
    how = f"{HOW}; ours in bf16, llama.cpp (xllamacpp's wheel, built for AVX2) on the file's Q4_1 weights"
    return Table("longctx_llamacpp", "The engine against llama.cpp", how, "llama.cpp", rows, targets)
