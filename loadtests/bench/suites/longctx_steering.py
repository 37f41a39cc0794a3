"""Cost of looking inside for a decode step: a vector, masked heads, captured activations, rows and lens.

The contenders take turns on the same sequences of SmolLM2 in the format that is served by default; a step is what the
scheduler calls, the sampling left out. Clocks are CPU seconds of one thread.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from loadtests.bench.longctx import gguf
from loadtests.bench.result import Table, row
from loadtests.bench.turns import milliseconds, threads
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.taps import (
    ActivationCapture,
    AttentionCapture,
    LensCapture,
    PlacedEdit,
    RequestTaps,
    SequenceTaps,
    TokenRange,
)
from services.llm_longctx.serving.weight_format import load_weights
from shared.lm.interventions import Add, Scale

PROMPT, LAYER, BASELINE = 128, 14, "nothing"
ALL = TokenRange()


def measure(rounds: int = 40, count: int = 8) -> Table:
    """Alternate `count` steps with and without taps at 128 tokens and beyond."""
    with tempfile.TemporaryDirectory() as cache, threads(1), torch.inference_mode():
        weights = load_weights(gguf(), Path(cache), "auto")
        engine = Engine(weights.model, packed=weights.packed)
        vector = torch.randn(1, 1, weights.model.config.width)
        taps = {
            BASELINE: None,
            "the same again": None,
            "one vector": RequestTaps((PlacedEdit(Add(f"resid_post.{LAYER}", vector), ALL),)),
            "three heads masked": RequestTaps((PlacedEdit(Scale(f"z.{LAYER}", 0.0, heads=[0, 1, 2]), ALL),)),
            "one activation captured": RequestTaps(captures=(ActivationCapture(f"resid_post.{LAYER}", ALL),)),
            "attention of one layer captured": RequestTaps(
                captures=(AttentionCapture((LAYER,), tuple(range(9)), ALL),)
            ),
            "lens on one layer": RequestTaps(captures=(LensCapture((LAYER,), 5, ALL),)),
        }
        contenders = {name: _stepper(engine, one) for name, one in taps.items()}
        taken = milliseconds(contenders, rounds, count, time.process_time)
    base = statistics.median(taken[BASELINE])
    rows = [row(name, "CPU ms / step", times, base) for name, times in taken.items()]
    ratios = [one / other for one, other in zip(taken["one vector"], taken[BASELINE], strict=True)]
    targets = {"one vector: median of its rounds over the baseline's": (statistics.median(ratios), 1.03)}
    how = f"SmolLM2-135M-Instruct, batch 1, from {PROMPT} tokens on, one thread, CPU clock, {rounds} rounds of {count}"
    return Table("longctx_steering", "Interventions and captures in a decode step", how, BASELINE, rows, targets)


def _stepper(engine: Engine, taps: RequestTaps | None) -> Callable[[], object]:
    """A step of a sequence of its own, which grows."""
    state = engine.runner.open(engine.policy)
    state.reserve(PROMPT, 2048)
    engine.runner.prefill(state, [5] * PROMPT, last=True, keep=1)
    own = () if taps is None else (SequenceTaps(taps, engine.model),)
    return partial(engine.runner.decode, [state], [5], own)
