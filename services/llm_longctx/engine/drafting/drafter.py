"""Drafter: decodes a batch on the CPU; a sequence that decodes alone is fed a draft of what may follow, too.

The decoder verifies drafts, so logits behind tokens that came true need no step of their own. Knows sequences on pages
and their decoder; knows nothing about whose turn it is.
"""

import time
from collections import deque

from torch import Tensor

from services.llm_longctx.engine.drafting.prompt_lookup import DraftMeter, PromptLookup
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.sequence import Sequence

_DRAFT = 4
"""Tokens of a draft: so few that a step with them takes little longer than one without."""


class Drafter:
    """Decodes sequences of one decoder. It drafts for the one that decoded alone last, until that leaves the batch."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._begin(None)

    def decode(self, batch: list[Sequence[PagedState]]) -> list[Tensor]:
        """Logits [V] behind each sequence's next token: foretold by a draft, or by one step of all others."""
        rows = {s: row for s in batch if (row := self._take_verified(s)) is not None}
        if rest := [s for s in batch if s not in rows]:
            rows |= self._run(rest)
        return [rows[s] for s in batch]

    def end(self, state: PagedState) -> None:
        """An answer is over: take back what was fed of its draft and did not come true."""
        if state is self._state:
            self._settle(state)
            self._begin(None)

    def _begin(self, state: PagedState | None) -> None:
        self._state, self._lookup, self._meter = state, PromptLookup(), DraftMeter()  # of that sequence
        self._verified: deque[tuple[int, Tensor]] = deque()  # what was fed of a draft, with the logits [V] behind it
        self._drafted, self._seconds = 0, 0.0  # tokens of the last draft, and how long its step took

    def _settle(self, state: PagedState) -> None:
        """Take back what was fed of a draft and did not come true, and note what the draft was good for."""
        if self._drafted:
            self._meter.add_drafted(self._seconds, 1 + self._drafted - len(self._verified))
            self._drafted = 0
        state.cache.truncate(len(self._verified))
        self._verified.clear()

    def _run(self, batch: list[Sequence[PagedState]]) -> dict[Sequence[PagedState], Tensor]:
        """A step of a batch; the logits behind the tokens of a draft are kept."""
        first = batch[0]
        draft = self._draft(first) if len(batch) == 1 else []
        fed = [(s.state, token) for s in batch for token in (s.next_token, *draft)]
        taps = () if draft else [s.taps for s in batch]
        begun = time.perf_counter()
        rows = iter(self._runner.decode([s for s, _ in fed], [token for _, token in fed], taps).float())
        seconds, found = time.perf_counter() - begun, {s: next(rows) for s in batch}
        if draft:
            self._verified.extend(zip(draft, rows, strict=True))
            self._drafted, self._seconds = len(draft), seconds
        elif first.state is self._state and len(batch) == 1:
            self._meter.add_plain(seconds)
        return found

    def _draft(self, s: Sequence[PagedState]) -> list[int]:
        """Tokens that may follow the next one; none where it does not pay, or can't be taken back."""
        state, cache = s.state, s.state.cache
        if s.taps is not None or not s.is_at_end or not self._can_draft(state):
            return []
        if state is not self._state:
            self._begin(state)
        if not self._meter.pays():
            return []
        room = min(self._runner.model.config.positions - cache.length, cache.most_in_step) - 1
        draft = self._lookup.draft([*s.request.prompt_ids, *s.output_ids], min(_DRAFT, room))
        return draft if cache.pages_needed(1 + len(draft)) <= self._runner.pool.free else []

    def _can_draft(self, state: PagedState) -> bool:
        """Whether tokens behind the next can be fed with it, and be taken back: in C++ steps, while no head is cut."""
        method, config = state.policy.method, self._runner.model.config
        if method.overrides("decode_plan") or method.overrides("after_decode") or getattr(config, "windows", None):
            return False
        is_whole = not state.policy.heads.calibrated and not state.cache.cut.any()
        return is_whole and self._runner.passes.has_native_step

    def _take_verified(self, s: Sequence[PagedState]) -> Tensor | None:
        """The logits behind the next token where a draft foretold it; else the rest of the draft is taken back."""
        if s.state is not self._state or not self._verified:
            return None
        token, logits = self._verified[0]
        if token != s.next_token:
            self._settle(s.state)
            return None
        self._verified.popleft()
        if not self._verified:
            self._settle(s.state)
        return logits
