"""Tapped steps: taps of one forward pass, and which sequences of a decode step in C++ must step alone for theirs."""

from collections.abc import Sequence

from torch import Tensor

from services.llm_longctx.engine.attention.decode import StepAttention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.step_rows import StepRows
from services.llm_longctx.engine.device.decoder_passes import DecoderPasses
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


def open_tap(taps: SequenceTaps | None, state: PagedState, offset: int, tokens: Sequence[int]) -> ForwardTap | None:
    """The tap of a forward; None where it has nothing to do."""
    if taps is None or taps.is_idle(offset, offset + len(tokens)):
        return None
    return taps.open(state, offset, tokens)


def open_step_taps(rows: StepRows, taps: Sequence[SequenceTaps | None]) -> list[ForwardTap | None]:
    """The taps of a step's sequences."""
    given = zip(taps, rows.states, rows.positions, rows.tokens, strict=True)
    return [open_tap(one, state, at, [token]) for one, state, at, token in given]


def step_alone(passes: DecoderPasses, seam: StepAttention, taps: SequenceTaps) -> Tensor:
    """The C++ step of one sequence with taps: logits [V]."""
    rows = seam.rows
    (state,), (token,), (position,) = rows.states, rows.tokens, rows.positions
    forward = taps.open(state, position, [token])
    if ("normed", -1) in forward.tapped:  # C++ norms the stream where it makes the logits
        logits = passes.run_layers(seam, forward)[0]
    else:
        runs = rows.entry_runs() if seam.is_plain else None
        logits = passes.native.step_tapped(token, position, seam, runs, forward, forward.tapped, state.adapter)[0]
    forward.end()
    state.cache.end_step()
    return logits


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
