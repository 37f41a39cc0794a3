"""Tapped steps: the taps of one forward pass, and decode steps in C++ of sequences of which some are tapped.

There, who adds vectors to the residual stream stays in the step of all; anything else is a step of its own. In torch it
is one step with taps. Either way the logits of the others are what they would be without, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from services.llm_longctx.engine.attention.decode import StepAttention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.step_rows import StepRows
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.taps.sequence_taps import ForwardTap, SequenceTaps
from services.llm_longctx.kernels import Addition
from shared.lm.attention import Tap, ignore_taps

if TYPE_CHECKING:
    from services.llm_longctx.engine.model_runner import ModelRunner


def tap_of(inputs: LayerInputs, forward: Tap | None = None) -> Tap:
    """Only a pass that somebody looks at is tapped: the decoder leaves work out where nobody does."""
    if forward is None:
        return inputs.tap if inputs.is_tapped else ignore_taps

    def tap(site: str, layer: int, x: Tensor) -> Tensor:
        return inputs.tap(site, layer, forward(site, layer, x))

    return tap if inputs.is_tapped else forward


def open_tap(taps: SequenceTaps | None, state: PagedState, offset: int, tokens: Sequence[int]) -> ForwardTap | None:
    """The tap of a forward; None where it has nothing to do."""
    if taps is None or taps.is_idle(offset, offset + len(tokens)):
        return None
    return taps.open(state, offset, tokens)


def open_step_taps(rows: StepRows, taps: Sequence[SequenceTaps | None]) -> list[ForwardTap | None]:
    """The taps of a step's sequences."""
    given = zip(taps, rows.states, rows.positions, rows.tokens, strict=True)
    return [open_tap(one, state, at, [token]) for one, state, at, token in given]


def decode_tapped(
    runner: ModelRunner,
    states: Sequence[PagedState],
    tokens: Sequence[int],
    taps: Sequence[SequenceTaps | None],
) -> Tensor:
    """Feed one token to each sequence by steps in C++: logits [B,V]."""
    additions, alone = _sort_taps(states, taps)
    if not alone:
        return runner.run_step(StepRows(states, tokens), additions)
    together = [i for i in range(len(states)) if i not in alone]
    logits = torch.empty(len(states), runner.model.config.vocab, device="cpu")  # where C++ steps leave them
    if together:
        rows = StepRows([states[i] for i in together], [tokens[i] for i in together])
        logits[together] = runner.run_step(rows, additions).float().cpu()
    for i, one in alone.items():
        logits[i] = _decode_alone(runner, states[i], tokens[i], one).float().cpu()
    return logits


def _decode_alone(runner: ModelRunner, state: PagedState, token: int, taps: SequenceTaps) -> Tensor:
    """The C++ step of one sequence with taps: logits [V]."""
    rows = StepRows([state], [token])
    seam = StepAttention(rows, runner.backend, runner.inputs_of([state]))
    forward = taps.open(state, state.cache.length, [token])
    if ("normed", -1) in forward.tapped:  # C++ norms the stream where it makes the logits
        logits = runner.passes.run_layers(seam, forward)[0]
    else:
        runs = rows.entry_runs() if seam.is_plain else None
        at = rows.positions[0]
        logits = runner.passes.native.step_tapped(token, at, seam, runs, forward, forward.tapped, state.adapter)[0]
    forward.end()
    state.cache.end_step()
    return logits


def _sort_taps(
    states: Sequence[PagedState], taps: Sequence[SequenceTaps | None]
) -> tuple[list[Addition], dict[int, SequenceTaps]]:
    """Additions in the common step, with rows counted without sequences that step alone; and these."""
    additions: list[Addition] = []
    alone: dict[int, SequenceTaps] = {}
    for i, (state, one) in enumerate(zip(states, taps, strict=True)):
        found = [] if one is None else one.find_additions(state.cache.length, i - len(alone))
        if one is not None and found is None:
            alone[i] = one
        additions += found or ()
    return additions, alone
