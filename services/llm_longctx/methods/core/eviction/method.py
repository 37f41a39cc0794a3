"""Cache eviction by scores: the base of methods that rank cached entries and keep the best share of them.

A subclass writes `score`, and nothing else. The kept entries, the time of cuts, the memory, the
knobs for a budget and the oracle follow from it. Knows nothing about any particular score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.llm_longctx.methods.core.eviction.rules import EvictionRules
from services.llm_longctx.methods.core.eviction.scoring_inputs import ScoringInputs, rotary_angles
from services.llm_longctx.methods.core.hook_inputs import (
    CacheView,
    DecodeView,
    PostPrefillView,
    PromptEndView,
    ReadTokens,
    ReplayView,
)
from services.llm_longctx.methods.core.hook_results import CacheUpdate, DecodePlan, RetentionPolicy
from shared.lm.config import DecoderConfig
from shared.lm.host_transfer import take_rows

_READ_ALL = DecodePlan()
_READ_AND_TELL = DecodePlan(want_scores=True)


class EvictionMethod(EvictionRules):
    """Scores cached entries when the prompt is read, keeps the best share of them and frees the others.

    Nothing is renumbered: entries keep the positions at which they were read. Heads that a head plan calls full are
    left alone.
    """

    # Hooks.

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        theta = rotary_angles(view.config, view.q.device)
        before = view.memo.summary if isinstance(view.memo, _Memo) else None
        all_heads = tuple(range(len(view.heads)))
        tokens_read = ReadTokens(view.layer, view.q, view.offset, theta, view.hidden, all_heads)
        summary = self.summarize(before, tokens_read)
        read = self._remember(view.memo, view.q, view.offset, max(self.query_window, 1), summary)
        waits = view.last and self.cuts_after_layers
        goes_on = not view.last or self.every is not None or waits
        memo = read if goes_on and (self.query_window > 1 or self._summarizes or waits) else None
        is_due = view.last and (self.prefill == "end" or self.every is not None)
        if waits or (self.prefill != "chunk" and not is_due):
            return CacheUpdate(memo=memo)
        heads = {g: head for g, head in enumerate(view.heads) if not view.full[g]}
        if not heads:
            return CacheUpdate(memo=memo)
        tokens = max(view.prompt, view.length)
        if view.last and read.q.shape[1] < min(self.query_window, tokens):
            raise RuntimeError(f"{self.name} needs {self.query_window} queries, and {read.q.shape[1]} were not cached")
        count = self.counts(tokens, view.config.layers)[view.layer]
        if self.prefill == "none":
            count = tokens
        scoring = ScoringInputs(tuple(heads), theta, summary, view.output)
        retain = self._cut(heads, read.q, view.length, view.layer, count, scoring, view.config)
        if view.last and self.every is not None:
            # Later cuts must not need pages, so nothing is shared with other sequences from here on.
            retain = {g: RetentionPolicy(heads[g].positions.sort().values) for g in heads} | retain
        return CacheUpdate(retain, memo=memo)

    def after_replay(self, view: ReplayView) -> object:
        if not isinstance(view.memo, _Memo):
            return view.memo
        return replace(view.memo, summary=self.summarize_replay(view.memo.summary, view))

    def after_prompt(self, view: PromptEndView) -> dict[int, CacheUpdate]:
        where, kept = self._keep_model(view)
        updates: dict[int, dict[int, RetentionPolicy]] = {}
        for (layer, g, head), one in zip(where, kept, strict=True):
            if not bool(one.all()):
                updates.setdefault(layer, {})[g] = RetentionPolicy(head.positions.sort().values[one])
        return {layer: CacheUpdate(updates.get(layer, {})) for layer, memo in enumerate(view.memos) if memo is not None}

    def _keep_model(self, view: PromptEndView) -> tuple[list[tuple[int, int, CacheView]], list[Tensor]]:
        """Cut heads as (layer, head, entries), and what stays of each."""
        group, counts = view.config.heads // view.config.kv_heads, self.counts(view.tokens, view.config.layers)
        where: list[tuple[int, int, CacheView]] = []
        scores: list[Tensor] = []
        norms: list[Tensor] = []
        kept: list[Tensor] = []
        for layer, memo in enumerate(view.memos):
            mine = [g for g, full in enumerate(view.full[layer]) if not full]
            if not mine or not isinstance(memo, _Memo):
                continue
            heads = [view.heads[layer][g] for g in mine]
            output = None if view.outputs is None else view.outputs[layer]
            scoring = ScoringInputs(tuple(mine), rotary_angles(view.config, memo.q.device), memo.summary, output)
            q = take_rows(memo.q, [g * group + i for g in mine for i in range(group)])
            where += [(layer, g, head) for g, head in zip(mine, heads, strict=True)]
            own, weights = self._score_heads(heads, q, view.tokens, layer, scoring), self._norms(heads, q, scoring)
            if self.allocation != "model":
                at = [head.positions.sort().values for head in heads]
                kept += self.keep_entries(own, at, counts[layer], weights)
            scores += own
            norms += weights or []
        if where and self.allocation == "model":
            at = [head.positions.sort().values for _, _, head in where]
            kept = self.keep_entries(scores, at, counts[0], norms or None, tokens=view.tokens)
        return where, kept

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        remembers = self.query_window > 1 or self._summarizes
        due = self.every is not None and (remembers or step.number % self.every == 0)
        return _READ_AND_TELL if due else _READ_ALL

    def after_decode(self, step: DecodeView, scores: Sequence[Tensor]) -> CacheUpdate:
        theta = rotary_angles(step.config, step.q.device)
        before = step.memo.summary if isinstance(step.memo, _Memo) else None
        all_heads = tuple(range(len(step.heads)))
        token = ReadTokens(step.layer, step.q[:, None], step.position, theta, step.hidden, all_heads, is_decoding=True)
        summary = self.summarize(before, token)
        read = self._remember(step.memo, step.q[:, None], step.position, self.recent, summary)
        memo = read if self.query_window > 1 or self._summarizes else None
        heads = {g: step.heads[g] for g in range(len(step.heads)) if not step.full[g]}
        if not heads or self.every is None or step.number % self.every:
            return CacheUpdate(memo=memo)
        tokens = step.position + 1
        count = self.counts(tokens, step.config.layers)[step.layer]
        scoring = ScoringInputs(tuple(heads), theta, summary, step.output)
        return CacheUpdate(self._cut(heads, read.q, tokens, step.layer, count, scoring, step.config), memo=memo)

    def overrides(self, hook: str) -> bool:
        if hook == "after_prompt":
            return self.cuts_after_layers
        return super().overrides(hook) and (self.every is not None or hook not in {"decode_plan", "after_decode"})

    # How it is done.

    def _cut(
        self,
        heads: Mapping[int, CacheView],
        q: Tensor,
        tokens: int,
        layer: int,
        count: int,
        scoring: ScoringInputs,
        config: DecoderConfig,
    ) -> dict[int, RetentionPolicy]:
        """Orders for those of some heads that hold more than they keep; queries q [H,w,d] of all heads."""
        if not self.is_cut([len(head.positions) for head in heads.values()], count):
            return {}
        group = config.heads // config.kv_heads
        mine = take_rows(q, [g * group + i for g in heads for i in range(group)])
        kept = self.keep_positions(list(heads.values()), mine, tokens, layer, count, scoring)
        return {
            g: RetentionPolicy(positions)
            for (g, head), positions in zip(heads.items(), kept, strict=True)
            if len(positions) < len(head.positions)
        }

    def _remember(self, memo: object, q: Tensor, offset: int, most: int, summary: object) -> _Memo:
        # A memo that came with a cached prefix may be another method's, or reach beyond it: it counts only where it
        # ends right before the new queries q [H,T,d], whose first has position `offset`.
        end = offset + q.shape[1]
        if isinstance(memo, _Memo) and memo.end == offset:
            q = torch.cat((memo.q, q), 1)
        return _Memo(q[:, -most:].clone(), end, summary)


@dataclass(frozen=True, slots=True, eq=False)
class _Memo:
    """The last queries q [H,w,d] before position `end`, and the summary of all tokens before it."""

    q: Tensor
    end: int
    summary: object = None
