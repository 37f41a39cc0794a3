"""Tapped steps: the taps of one forward pass, and which sequences of a decode step must step alone for theirs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.taps.sequence_taps import ForwardTap, SequenceTaps
from services.llm_longctx.kernels import Addition
from shared.lm.attention import Tap, ignore_taps


def tap_of(inputs: LayerInputs, forward: Tap | None = None) -> Tap:
    """Only a pass that somebody looks at is tapped: the decoder leaves work out where nobody does."""
    if forward is None:
        return inputs.tap if inputs.is_tapped else ignore_taps

    def tap(site: str, layer: int, x: Tensor) -> Tensor:
        return inputs.tap(site, layer, forward(site, layer, x))

    return tap if inputs.is_tapped else forward


def open_tap(taps: SequenceTaps, state: PagedState, offset: int, tokens: Sequence[int]) -> ForwardTap | None:
    """The tap of a forward; None where it has nothing to do."""
    return None if taps.is_idle(offset, offset + len(tokens)) else taps.open(state, offset, tokens)


def sort_taps(
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
