"""Cache eviction by scores: the base of methods that rank cached entries and keep the best share of them.

A subclass writes `score`, and nothing else. What is kept, when, how much memory that takes, how a budget becomes knobs
and what the oracle computes follow from it. Knows nothing about any particular score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from services.llm_longctx.methods.core import eviction_allocation as allocation_rules
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference, Supports
from services.llm_longctx.methods.core.eviction_allocation import SafeguardRule, count_kept, pyramid_counts
from services.llm_longctx.methods.core.eviction_oracle import replay
from services.llm_longctx.methods.core.head_roles import count_full, entries_by_role
from services.llm_longctx.methods.core.hook_inputs import CacheView, DecodeView, PostPrefillView, ScoringView
from services.llm_longctx.methods.core.hook_results import CacheUpdate, DecodePlan, Footprint, Heads, RetentionPolicy
from services.llm_longctx.methods.core.oracle import masked_attention
from shared.errors import InvalidOption
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan

__all__ = ["EvictionMethod"]

_READ_ALL = DecodePlan()
_READ_AND_TELL = DecodePlan(want_scores=True)


class EvictionMethod(AttentionMethod):
    """Scores cached entries when the prompt is read, keeps the best share of them and frees the others.

    Nothing is renumbered: entries keep the positions at which they were read. Heads that a head plan calls full are
    left alone.
    """

    phases = frozenset({"decode"})
    actions = frozenset({"eviction"})
    granularity = "token"
    evidence = "scores"
    optional_knobs = frozenset({"safeguard", "safeguard_rule", "recent"})

    ratio: float = Field(0.5, gt=0, le=1, description="Share of the prompt's entries that is kept.")
    budget: int | None = Field(None, ge=1, le=1 << 20, description="Entries kept per head on average; wins over ratio.")
    allocation: Literal["head", "layer", "pyramid"] = Field(
        "head", description="Which entries compete: a head's, a layer's (AdaKV); `pyramid`: lower layers keep more."
    )
    safeguard: float = Field(
        0.2, ge=0, le=1, description="layer: share of the even budget that each head has for itself."
    )
    safeguard_rule: SafeguardRule = Field("floor", description="layer: `floor` guarantees that share, `mix` averages.")
    beta: float = Field(20, ge=1, description="pyramid: how steep it is.")
    prefill: Literal["end", "chunk", "none"] = Field("end", description="When the prompt is cut.")
    every: int | None = Field(None, ge=1, description="While decoding: cut again after so many steps.")
    recent: int = Field(256, ge=1, le=1 << 16, description="Queries remembered while decoding, if scores need several.")

    contract_knobs: ClassVar = (
        {"ratio": 0.4},
        {"budget": 13, "allocation": "layer", "safeguard": 0.4, "every": 4},
        {"ratio": 0.5, "allocation": "pyramid", "beta": 3.0, "prefill": "none", "every": 3},
        {"budget": 11, "prefill": "chunk"},
    )

    # What a subclass writes.

    def score(self, view: ScoringView) -> Tensor:
        """How much each entry is worth, [G',n]: the highest stay, +inf always.

        The same for the same entries, whatever their order, and for a head whatever the others hold.
        """
        raise NotImplementedError

    @property
    def query_window(self) -> int:
        """How many of the last queries `score` needs; 0 where the last one or none will do."""
        return 0

    # What follows.

    @property
    def active_phases(self) -> frozenset[str]:
        """A prompt that is cut chunk by chunk is not read densely."""
        return self.phases | {"prefill"} if self.prefill == "chunk" else self.phases

    @property
    def chunk_invariant(self) -> bool:  # type: ignore[override]  # a knob decides
        """Whether the cut comes after the last chunk, or never."""
        return self.prefill != "chunk"

    @property
    def supports(self) -> Supports:  # type: ignore[override]  # a knob decides
        """What was cut by a share of one prompt is of no use to a longer one."""
        depends = self.prefill == "chunk" and (self.budget is None or self.allocation == "pyramid")
        return Supports(prefix_reuse=not depends)

    @property
    def unread_tokens(self) -> int:
        """Whose queries `score` needs."""
        return max(self.query_window, 1)

    @property
    def shares_layer_budget(self) -> bool:
        """With `allocation="layer"`."""
        return self.allocation == "layer"

    def counts(self, tokens: int, layers: int) -> list[int]:
        """Entries per head of each layer after a cut at so many tokens, before heads compete: [L]."""
        if self.allocation != "pyramid":
            return [count_kept(tokens, self.ratio, self.budget)] * layers
        share = self.ratio * tokens if self.budget is None else self.budget
        return pyramid_counts(tokens, layers, share, self.query_window, self.beta)

    def scores(self, q: Tensor, k: Tensor, v: Tensor, layer: int = 0, **inputs: Any) -> Tensor:
        """Scores [G,N] of a whole prompt: queries q [H,T,d] of its last T tokens, rotated, k and v [G,N,d].

        Further inputs are ignored.
        """
        G, N = k.shape[:2]
        held = [CacheView(k[g], v[g], torch.arange(N)) for g in range(G)]
        return torch.stack(self._score_heads(held, q[:, -max(self.query_window, 1) :], N, layer))

    def keep(self, scores: Tensor) -> Tensor:
        """What a cut at the prompt's end keeps, bool [L,G,N], by the scores of all layers [L,G,N]."""
        L, _, N = scores.shape
        at, counts = torch.arange(N), self.counts(N, L)
        return torch.stack(
            [torch.stack(self._keep_entries(list(scores[i]), [at] * len(scores[i]), counts[i])) for i in range(L)]
        )

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_new: Tensor | None = None,
        k_new: Tensor | None = None,
        v_new: Tensor | None = None,
        chunks: Sequence[int] | None = None,
        layer: int = 0,
        layers: int = 1,
        **inputs: Any,
    ) -> Reference:
        """The prompt's rows, out [H,N,d] and mask [H,N,N]; or, where they are given, those of T steps behind it.

        Steps q_new [H,T,d], k_new, v_new [G,T,d]: out [H,T,d], mask [H,T,N+T]. Extras: `kept` [G,N], the prompt's
        entries that are held when it is read, and `scores` [G,N] of the whole prompt.
        """
        N, T = k.shape[1], 0
        extras = {"scores": self.scores(q, k, v, layer=layer)} if N else {}
        if q_new is not None and k_new is not None and v_new is not None:
            T = q_new.shape[1]
            q, k, v = torch.cat((q, q_new), 1), torch.cat((k, k_new), 1), torch.cat((v, v_new), 1)
        mask, kept = replay(self, q, k, v, chunks=chunks or (N,), steps=T, layer=layer, layers=layers)
        extras["kept"] = torch.stack([torch.isin(torch.arange(N), one) for one in kept])
        rows = slice(N if T else 0, N + T)
        return Reference(masked_attention(q[:, rows], k, v, mask[:, rows]), mask[:, rows], extras)

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> Heads:
        """No head is full, except those that a plan's roles say."""
        if plan is None or plan.roles is None:
            return Heads(full=((False,) * config.kv_heads,) * config.layers)
        return Heads(full=tuple(tuple(bool(x) for x in row) for row in plan.roles))

    def estimate(self, config: DecoderConfig, heads: Heads, prompt: int, new: int) -> Footprint:
        """What a cut leaves, and what is appended; with `every` at its most, which is just before a cut."""
        tokens = prompt if self.every is None else prompt + new
        protected = count_protected(self, config.heads, config.kv_heads, config.head_dim, tokens)
        begin = [
            prompt if self.prefill == "none" else min(prompt, max(n, protected))
            for n in self.counts(prompt, config.layers)
        ]
        most = [n + new for n in begin]
        if self.every is not None and new >= self.every:
            ends = range(prompt + self.every, prompt + new + 1, self.every)
            targets = [self.counts(end, config.layers) for end in (ends if self.allocation == "pyramid" else ends[-1:])]
            tops = [
                max(first, protected, *column) for first, column in zip(begin, zip(*targets, strict=True), strict=True)
            ]
            most = [min(n, top + self.every) for n, top in zip(most, tops, strict=True)]
        rows = [entries_by_role(heads, config, prompt + new, min(n, prompt + new))[i] for i, n in enumerate(most)]
        return Footprint(tuple(rows), is_bound=self.every is not None)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        """The largest `budget` under which all heads together hold at most `entries`, or the whole prompt."""
        heads = self.head_plan(config, plan)
        cut = config.layers * config.kv_heads - count_full(heads, config)

        def holds(method: AttentionMethod) -> int:
            return sum(map(sum, method.estimate(config, heads, prompt, new).entries))

        if holds(whole := self.with_knobs(ratio=1.0, budget=None)) <= entries:
            return whole
        full = (config.layers * config.kv_heads - cut) * (prompt + new)
        appended = new if self.every is None else min(self.every, new)
        least = count_protected(self, config.heads, config.kv_heads, config.head_dim, prompt + new) + 1
        if holds(self.with_knobs(budget=least)) <= entries:
            # Rounding in a pyramid may take a few entries more than its average.
            for budget in range((entries - full) // max(cut, 1) - appended, least - 1, -1):
                if holds(fitted := self.with_knobs(budget=budget)) <= entries:
                    return fitted
        if holds(self) <= entries:
            return self
        detail = f"{self.name} can't hold {prompt + new:,} tokens in {entries:,} entries."
        raise InvalidOption(detail, hint="Ask for more, or for fewer new tokens.", field="longctx")

    # Hooks.

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        """Cut when the prompt ends, or after every chunk."""
        queries = self._remember(view.memo, view.q, view.offset, max(self.query_window, 1))
        goes_on = not view.last or self.every is not None
        memo = queries if goes_on and self.query_window > 1 else None
        if self.prefill != "chunk" and not (view.last and (self.prefill == "end" or self.every is not None)):
            return CacheUpdate(memo=memo)
        heads = {g: head for g, head in enumerate(view.heads) if not view.full[g]}
        if not heads:
            return CacheUpdate(memo=memo)
        tokens = max(view.prompt, view.length)
        if view.last and queries.q.shape[1] < min(self.query_window, tokens):
            message = f"{self.name} needs {self.query_window} queries, and {queries.q.shape[1]} were not cached"
            raise RuntimeError(message)
        count = self.counts(tokens, view.config.layers)[view.layer]
        if self.prefill == "none":
            count = tokens
        retain = self._cut(heads, queries.q, view.length, view.layer, count, view.config)
        if view.last and self.every is not None:
            # Later cuts must not need pages, so nothing is shared with other sequences from here on.
            retain = {g: RetentionPolicy(heads[g].positions.sort().values) for g in heads} | retain
        return CacheUpdate(retain, memo=memo)

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        """Everything that is held; the engine calls back where a cut is due or the query must be remembered."""
        due = self.every is not None and (self.query_window > 1 or step.number % self.every == 0)
        return _READ_AND_TELL if due else _READ_ALL

    def after_decode(self, step: DecodeView, scores: Sequence[Tensor]) -> CacheUpdate:
        """Cut to what a prompt of this length would keep."""
        queries = self._remember(step.memo, step.q[:, None], step.position, self.recent)
        memo = queries if self.query_window > 1 else None
        heads = {g: step.heads[g] for g in range(len(step.heads)) if not step.full[g]}
        if not heads or self.every is None or step.number % self.every:
            return CacheUpdate(memo=memo)
        tokens = step.position + 1
        count = self.counts(tokens, step.config.layers)[step.layer]
        return CacheUpdate(self._cut(heads, queries.q, tokens, step.layer, count, step.config), memo=memo)

    def overrides(self, hook: str) -> bool:
        """Decoding is dense unless there are cuts in it."""
        return super().overrides(hook) and (self.every is not None or hook not in {"decode_plan", "after_decode"})

    # How it is done.

    def _cut(
        self, heads: Mapping[int, CacheView], q: Tensor, tokens: int, layer: int, count: int, config: DecoderConfig
    ) -> dict[int, RetentionPolicy]:
        """Orders for those of some heads that hold more than they keep."""
        if sum(len(head.positions) for head in heads.values()) <= count * len(heads) and (
            self.allocation == "layer" or all(len(head.positions) <= count for head in heads.values())
        ):
            return {}
        group = config.heads // config.kv_heads
        mine = q[[g * group + i for g in heads for i in range(group)]]
        kept = self.keep_positions(list(heads.values()), mine, tokens, layer, count)
        return {
            g: RetentionPolicy(positions)
            for (g, head), positions in zip(heads.items(), kept, strict=True)
            if len(positions) < len(head.positions)
        }

    def keep_positions(
        self, heads: Sequence[CacheView], q: Tensor, tokens: int, layer: int, count: int
    ) -> list[Tensor]:
        """Positions that stay of each head, ascending; queries q [H',w,d]."""
        at = [head.positions.sort().values for head in heads]
        kept = self._keep_entries(self._score_heads(heads, q, tokens, layer), at, count)
        return [positions[one] for positions, one in zip(at, kept, strict=True)]

    def _keep_entries(self, scores: Sequence[Tensor], positions: Sequence[Tensor], count: int) -> list[Tensor]:
        """Which entries of a layer's heads stay, per head bool [n]."""
        if self.allocation != "layer":
            return allocation_rules.keep_per_head(scores, count)
        return allocation_rules.keep_per_layer(scores, positions, count, self.safeguard, self.safeguard_rule)

    def _score_heads(self, heads: Sequence[CacheView], q: Tensor, tokens: int, layer: int) -> list[Tensor]:
        """Scores of each head's entries in order of position [n]; heads that hold equally many are one view."""
        wide, group = torch.promote_types(heads[0].k.dtype, torch.float32), q.shape[0] // len(heads)
        found: dict[int, Tensor] = {}
        lengths = [len(head.positions) for head in heads]
        for n in dict.fromkeys(lengths):
            which = [g for g, length in enumerate(lengths) if length == n]
            orders = [heads[g].positions.argsort() for g in which]
            k, v = (
                torch.stack([store[order] for store, order in zip(stores, orders, strict=True)]).to(wide)
                for stores in ([heads[g].k for g in which], [heads[g].v for g in which])
            )
            positions = torch.stack([heads[g].positions[order] for g, order in zip(which, orders, strict=True)])
            queries = q[[g * group + i for g in which for i in range(group)]].to(wide)
            scores = self.score(ScoringView(layer, queries, k, v, positions, tokens))
            if scores.shape != positions.shape or scores.isnan().any():
                message = (
                    f"{self.name} must score {list(positions.shape)} entries with numbers, not {list(scores.shape)}"
                )
                raise ValueError(message)
            found |= dict(zip(which, scores, strict=True))
        return [found[g] for g in range(len(heads))]

    def _remember(self, memo: object, q: Tensor, offset: int, most: int) -> _Queries:
        """The last queries with new ones q [H,T,d] behind them, whose first has position `offset`.

        A memo that came with a cached prefix may be another method's, or reach beyond it: it counts only where it ends
        right before the new ones.
        """
        end = offset + q.shape[1]
        if isinstance(memo, _Queries) and memo.end == offset:
            q = torch.cat((memo.q, q), 1)
        return _Queries(q[:, -most:].clone(), end)


@lru_cache(maxsize=256)
def count_protected(method: EvictionMethod, heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """How many entries a head's scores protect of a prompt: tried on numbers that mean nothing."""
    if not tokens:
        return 0
    draw = torch.Generator().manual_seed(0)
    shapes = (heads, min(tokens, max(method.query_window, 1))), (kv_heads, tokens), (kv_heads, tokens)
    q, k, v = (torch.randn(*shape, head_dim, generator=draw) for shape in shapes)
    return int(method.scores(q, k, v).isposinf().sum(1).max())


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """The last queries q [H,w,d] before position `end`."""

    q: Tensor
    end: int
