"""A decode step far into a text by type of the KV cache, its bytes, and what few bits do to the answers.

Weights are the same in all rows. Clocks are CPU seconds of one thread, in which neighbours on a machine weigh least;
the types take turns. Quality is teacher-forced over real prose, the help topics that ship with Python, and by tasks of
RULER's form. At equal bytes SnapKV fills the same budget with as many entries as a type allows.
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fovea_lab.ruler.run import EvaluatedModel, run_ruler
from fovea_lab.ruler.spec import RulerSpec
from fovea_lab.text_corpus import load_library_prose
from loadtests.bench.longctx import cpu_seconds, gguf, log_probabilities, quality, read
from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.kernels.packed_pages import R3, R4
from services.llm_longctx.kv_cache import CacheBits
from services.llm_longctx.methods import method
from services.llm_longctx.serving.cache_dtype import name_cache_dtype
from services.llm_longctx.serving.method_selection import fit_policy
from services.llm_longctx.serving.weight_format import load_weights
from shared.lm.tokenizer import Tokenizer

TYPES: Mapping[str, CacheBits | Literal[16]] = {"bf16": 16, "q8": 8, "q4": 4, "r4": R4, "r3": R3}
BASELINE = "bf16"
FAR = 4096
READ = 1024
BUDGET = 0.25
"""Share of dense's bytes that all types get where they are compared at equal bytes."""

TASKS = ["niah_single_2", "niah_multivalue"]


def measure(rounds: int = 15, count: int = 400, far: int = FAR, samples: int = 8) -> Table:
    """Alternate the types `far` into a text; score `count` tokens behind 1,024 by steps; answer `samples` a task."""
    with tempfile.TemporaryDirectory() as cache, threads(1), torch.inference_mode():
        loaded = load_weights(gguf(), Path(cache), "q4")
        text = load_library_prose(8 * max(far, READ + count))
        ids = Tokenizer.from_folder(loaded.folder).encode(text, special=False)
        engine = Engine(loaded.model, packed=loaded.packed)
        taken: dict[str, list[float]] = defaultdict(list)
        opened = {name: begin(engine, engine.policy_of(cache_bits=bits), ids[:far]) for name, bits in TYPES.items()}
        for _ in range(rounds):
            for name, s in opened.items():
                taken[name].append(1000 * cpu_seconds(partial(s.step, 5)))
        rows = [row(name, f"CPU ms / token at {far:,}", taken[name], min(taken[BASELINE])) for name in TYPES]
        for s in opened.values():
            s.close()
        rows += memory(engine)
        scored = {name: score(engine, engine.policy_of(cache_bits=bits), ids, count) for name, bits in TYPES.items()}
        for name, bits in TYPES.items():
            most = int(BUDGET * engine.dense_bytes(READ))
            policy = fit_policy(engine, method("snapkv"), None, most, READ, 0, bits)
            scored[f"{name}, {BUDGET:.0%} of the bytes"] = score(engine, policy, ids, count)
        rows += quality(scored, BASELINE, torch.tensor(ids[READ + 1 : READ + 1 + count]))
        rows += needles(engine, Tokenizer.from_folder(loaded.folder), min(rounds, samples))
    how = (
        f"SmolLM2-135M-Instruct with its own 4-bit weights, one thread, CPU clock; quality on {count} tokens of "
        f"Python's help topics behind {READ:,}; {min(rounds, samples)} samples each of {' and '.join(TASKS)} "
        f"at {READ:,}, question-agnostic, never to be compared with published RULER tables"
    )
    return Table("longctx_cache", "Types of the KV cache", how, BASELINE, rows)


def begin(engine: Engine, policy: Policy, ids: Sequence[int]) -> OpenSequence:
    """A sequence that has read the beginning of the text."""
    s = OpenSequence(engine.runner, engine.runner.open(policy))
    read(s, ids)
    return s


def memory(engine: Engine, tokens: int = 8192) -> list[Row]:
    """Bytes for so many tokens over those of dense in bfloat16, dense and with half of the heads streaming."""
    config, dense, rows = engine.model.config, engine.dense_bytes(tokens), []
    roles = [[(layer + head) % 2 for head in range(config.kv_heads)] for layer in range(config.layers)]
    for name, how in (("dense", method("dense")), ("Duo, half of the heads", method("duo", roles=roles))):
        for dtype, bits in TYPES.items():
            held = engine.policy_of(how, cache_bits=bits).nbytes(tokens, 0, engine.pool)
            share = held / dense
            rows.append(Row(f"{name}, {dtype}, {tokens:,} tokens", "of dense bf16", share, share, share, share))
    return rows


def score(engine: Engine, policy: Policy, ids: Sequence[int], count: int) -> Tensor:
    """Log-probabilities [count,V] behind each of `count` tokens, fed one by one."""
    s = begin(engine, policy, ids[:READ])
    found = log_probabilities(s, ids[READ : READ + count])
    s.close()
    return found


def needles(engine: Engine, tokenizer: Tokenizer, samples: int) -> list[Row]:
    """Scores of tasks of RULER's form: dense in each type, and SnapKV in each type at equal bytes."""
    words = {name: name_cache_dtype(bits) for name, bits in TYPES.items()}
    asked = [{"method": "dense", "kv_cache_dtype": word, "label": name} for name, word in words.items()][1:]
    asked += [{"method": "snapkv", "kv_cache_dtype": word, "label": f"SnapKV, {name}"} for name, word in words.items()]
    facts = {"methods": asked, "budgets": [BUDGET], "lengths": [READ], "tasks": TASKS, "n": samples}
    report = run_ruler(EvaluatedModel(engine, tokenizer, {}, "SmolLM2-135M-Instruct"), RulerSpec.model_validate(facts))
    cells = [one for one in report.cells if one.method not in {"empty", "truncate"}]
    dense = {one.task: one.mean or 0.0 for one in cells if one.method == "dense"}
    return [
        Row(
            f"{'bf16' if one.method == 'dense' else one.method}, {one.task}",
            "score",
            one.mean or 0.0,
            one.low or 0.0,
            one.high or 0.0,
            (one.mean or 0.0) / max(dense[one.task], 1e-9),
            f"{one.kv_bytes / max(one.kv_bytes_dense, 1):.3f} of dense's bytes, n {one.n}",
        )
        for one in cells
    ]
