"""A decode step by format of weights, against the time of reading them once, and what few bits do to the answers.

SmolLM2's own file has 4 bits in layers and 8 in the output matrix; `q8` rounds the layers' anew and `bf16` widens all,
so that quality differs by the rounding of rows to 8 bits. Clocks are CPU seconds of one thread, in which neighbours on
a machine weigh least; the floor is bytes of the matrices over the bandwidth of a sum over 256 MB, measured alike.
"""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from loadtests.bench.longctx import cpu_seconds, gguf, log_probabilities, quality
from loadtests.bench.result import Table, row
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.serving.weight_format import ModelWeights, load_weights
from shared.lm.niah_prompts import build_haystack
from shared.lm.tokenizer import Tokenizer

FORMATS = ("bf16", "q8", "q4")
BASELINE = "bf16"
SPEED_AT = 128


def measure(rounds: int = 15, count: int = 400) -> Table:
    """Alternate the formats at 128 tokens; then score `count` tokens of prose by steps."""
    with tempfile.TemporaryDirectory() as cache, threads(1), torch.inference_mode():
        loaded = {name: load_weights(gguf(), Path(cache), name) for name in FORMATS}
        ids = Tokenizer.from_folder(loaded[BASELINE].folder).encode(build_haystack(8 * count + 2000), special=False)
        open_ones = {name: begin(one, ids) for name, one in loaded.items()}
        taken: dict[str, list[float]] = defaultdict(list)
        floors: dict[str, list[float]] = defaultdict(list)
        big = torch.ones(64 * 2**20)
        for _ in range(rounds):
            speed = 4 * big.numel() / cpu_seconds(big.sum)
            for name, s in open_ones.items():
                taken[name].append(1000 * cpu_seconds(lambda s=s: s.step(5)))
                floors[name].append(1000 * matrix_bytes(loaded[name]) / speed)
        rows = [row(name, "CPU ms / token at 128", taken[name], min(taken[BASELINE])) for name in FORMATS]
        rows += [row(f"{name}, floor", "ms", floors[name], min(taken[BASELINE])) for name in FORMATS]
        told = ids[SPEED_AT : SPEED_AT + count]
        scored = {name: log_probabilities(begin(one, ids), told) for name, one in loaded.items()}
    rows += quality(scored, BASELINE, torch.tensor(ids[SPEED_AT + 1 : SPEED_AT + 1 + count]))
    targets = {f"{n}: step over its floor": (min(taken[n]) / min(floors[n]), 1.5) for n in FORMATS}
    how = f"SmolLM2-135M-Instruct, one thread, CPU clock; quality on {count} tokens of made prose behind 128"
    return Table("longctx_weights", "Formats of weights", how, BASELINE, rows, targets)


def begin(weights: ModelWeights, ids: Sequence[int]) -> OpenSequence:
    """A sequence that has read the beginning of the text."""
    s = Engine(weights.model, packed=weights.packed).open()
    s.prefill(ids[:SPEED_AT])
    return s


def matrix_bytes(weights: ModelWeights) -> int:
    """Bytes that a step reads of the weights."""
    if weights.packed:
        return sum(matrix.data.nbytes for matrix in weights.packed.values())
    layers = sum(x.nbytes for key, x in weights.model.state_dict().items() if ".layers." in key)
    return layers + weights.model.output_matrix.nbytes
