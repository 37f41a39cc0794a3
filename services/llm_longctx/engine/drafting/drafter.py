"""Drafter: drafts tokens behind the next one of a sequence, and hands out the logits of those that came true.

Knows sequences on pages and the decoder that verifies; knows nothing about whose turn it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.sequence import Sequence

_DRAFT = 4
"""Tokens of a draft: so few that a step with them takes little longer than one without."""


class Drafter:
    """Drafts for the sequences of one decoder."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def draft(self, s: Sequence[PagedState]) -> list[int]:
        """Tokens that may follow the next one; none where it does not pay, or can't be taken back."""
        state = s.state
        if s.taps is not None or not s.is_at_end or not self._runner.can_draft(state) or not state.meter.pays():
            return []
        room = self._runner.model.config.positions - state.cache.length - 1
        room = min(room, state.cache.most_in_step - 1)
        draft = state.lookup.draft([*s.request.prompt_ids, *s.output_ids], min(_DRAFT, room))
        return draft if state.cache.pages_needed(1 + len(draft)) <= self._runner.pool.free else []

    def note(self, s: Sequence[PagedState], draft: list[int], rows: Iterator[Tensor], seconds: float) -> None:
        """A step that fed a draft, or none, took so long; keep the logits behind each token of the draft."""
        s.state.verified.extend((token, next(rows)) for token in draft)
        if draft:
            s.state.draft_cost = seconds, len(draft)
        else:
            s.state.meter.add_plain(seconds)

    def take_verified(self, s: Sequence[PagedState]) -> Tensor | None:
        """The logits behind the next token where a draft foretold it; else the rest of the draft is taken back."""
        state = s.state
        if not state.verified:
            return None
        token, logits = state.verified[0]
        if token != s.next_token:
            state.settle_draft()
            return None
        state.verified.popleft()
        if not state.verified:
            state.settle_draft()
        return logits
