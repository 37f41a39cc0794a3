"""Rules of eviction by scores: knobs, counts, who is kept, and the oracle; pure functions of tensors.

Knows no engine and no hook; `method` holds the class that methods derive from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference, Supports
from services.llm_longctx.methods.core.eviction.allocation import (
    SafeguardRule,
    count_kept,
    keep_critical,
    keep_per_head,
    keep_per_layer,
    pyramid_counts,
)
from services.llm_longctx.methods.core.eviction.budget import estimate_footprint, fit_budget
from services.llm_longctx.methods.core.eviction.oracle import replay
from services.llm_longctx.methods.core.eviction.scoring_inputs import ScoringInputs, split_output, value_norms
from services.llm_longctx.methods.core.hook_inputs import CacheView, ReadTokens, ReplayView, ScoringView
from services.llm_longctx.methods.core.hook_results import Footprint, HeadRoles
from services.llm_longctx.methods.core.oracle import masked_attention
from services.llm_longctx.methods.core.sparsity_claims import build_eviction_claim
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan
from shared.lm.host_transfer import take_rows


class EvictionRules(AttentionMethod):
    """Scores cached entries when the prompt is read, keeps the best share of them and frees the others.

    Nothing is renumbered: entries keep the positions at which they were read. Heads that a head plan calls full are
    left alone.
    """

    phases = frozenset({"decode"})
    actions = frozenset({"eviction"})
    granularity = "token"
    evidence = "scores"
    optional_knobs = frozenset({"safeguard", "safeguard_rule", "recent", "critical", "first_stage", "critical_epsilon"})

    ratio: float = Field(0.5, gt=0, le=1, description="Share of the prompt's entries that is kept.")
    budget: int | None = Field(None, ge=1, le=1 << 20, description="Entries kept per head on average; wins over ratio.")
    allocation: Literal["head", "layer", "model", "pyramid"] = Field(
        "head",
        description="Which entries compete: a head's, a layer's (AdaKV), the model's (KVzip, at a prompt's end only); "
        "`pyramid`: a head's, and lower layers keep more.",
    )
    safeguard: float = Field(
        0.2, ge=0, le=1, description="layer, model: share of the even budget that each head has for itself."
    )
    safeguard_rule: SafeguardRule = Field("floor", description="`floor` guarantees that share, `mix` averages.")
    beta: float = Field(20, ge=1, description="pyramid: how steep it is.")
    critical: bool = Field(False, description="Choose in two stages, the second by value norms (CriticalKV).")
    first_stage: float = Field(0.5, ge=0, le=1, description="critical: share that is kept by score alone.")
    critical_epsilon: float = Field(1e-4, ge=0, description="critical: added to scores in the second stage.")
    prefill: Literal["end", "chunk", "none"] = Field("end", description="When the prompt is cut.")
    every: int | None = Field(None, ge=1, description="While decoding: cut again after so many steps.")
    recent: int = Field(256, ge=1, le=1 << 16, description="Queries remembered while decoding, if scores need several.")

    contract_knobs: ClassVar[Mapping[str, Any] | Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4},
        {"budget": 13, "allocation": "layer", "safeguard": 0.4, "every": 4},
        {"ratio": 0.5, "allocation": "pyramid", "beta": 3.0, "prefill": "none", "every": 3},
        {"budget": 11, "prefill": "chunk"},
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A method claims what was measured of it."""
        if "name" in vars(cls):
            cls.sparsity = build_eviction_claim(cls.name, static=cls.evidence == "static")

    # Written by subclasses.

    def score(self, view: ScoringView) -> Tensor:
        """How much each entry is worth, [G',n]: the highest stay, +inf always.

        The same for the same entries, whatever their order, and for a head whatever the others hold.
        """
        raise NotImplementedError

    @property
    def query_window(self) -> int:
        """How many of the last queries `score` needs; 0 where the last one or none will do."""
        return 0

    def summarize(self, summary: object, tokens: ReadTokens) -> object:
        """Summary of all tokens read so far for `score`, given that of earlier ones; for scores of all queries.

        A method that writes it is read from the first token on: cached prefixes lack the summary.
        """
        return None

    def summarize_inputs(self, k: Tensor, v: Tensor, inputs: Mapping[str, Any]) -> object:
        """The summary of a whole prompt from what is given by hand, where queries alone don't make it."""
        return None

    def summarize_replay(self, summary: object, view: ReplayView) -> object:
        """The summary after a replay, for methods that have `replays`."""
        return summary

    # Derived.

    @model_validator(mode="after")
    def _cuts_in_time(self) -> Self:
        if self.allocation == "model" and (self.prefill != "end" or self.every is not None):
            message = "allocation=model cuts once, when all layers have read the prompt: leave prefill and every out"
            raise ValueError(message)
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"output"} if self.critical else ())

    @property
    def pyramid_window(self) -> int:
        """Last entries that every layer of a pyramid keeps."""
        return self.query_window

    @property
    def cuts_after_layers(self) -> bool:
        """Whether a cut waits for all layers."""
        return self.allocation == "model"

    @property
    def active_phases(self) -> frozenset[str]:
        return self.phases | {"prefill"} if self.prefill == "chunk" else self.phases

    @property
    def chunk_invariant(self) -> bool:  # type: ignore[override]  # a knob decides
        """Whether the cut comes after the last chunk, or never."""
        return self.prefill != "chunk"

    @property
    def supports(self) -> Supports:  # type: ignore[override]  # a knob decides
        """Entries cut by a share of one prompt are of no use to a longer one."""
        depends = self.prefill == "chunk" and (self.budget is None or self.allocation == "pyramid")
        return Supports(prefix_reuse=not (depends or self._summarizes or self.cuts_after_layers))

    @property
    def min_uncached_tokens(self) -> int:
        return max(self.query_window, 1)

    @property
    def shares_layer_budget(self) -> bool:
        return self.allocation == "layer"

    @property
    def shares_model_budget(self) -> bool:
        return self.allocation == "model"

    def counts(self, tokens: int, layers: int) -> list[int]:
        """Entries per head of each layer after a cut at so many tokens, before heads compete: [L]."""
        if self.allocation != "pyramid":
            return [count_kept(tokens, self.ratio, self.budget)] * layers
        share = self.ratio * tokens if self.budget is None else self.budget
        return pyramid_counts(tokens, layers, share, self.pyramid_window, self.beta)

    def count_model(self, tokens: int, heads: int) -> int:
        """Entries that so many heads keep together of a prompt, with `allocation="model"`."""
        if self.budget is not None or not tokens:
            return heads * count_kept(tokens, self.ratio, self.budget)
        return max(int(self.ratio * heads * tokens + 1e-9), 1)

    def scores(self, q: Tensor, k: Tensor, v: Tensor, layer: int = 0, **inputs: Any) -> Tensor:
        """Scores [G,N] of a whole prompt: queries q [H,T,d] of its last T tokens, rotated, k and v [G,N,d].

        Further inputs by name are ignored where the method has no use for them: `rope_theta`, `hidden` [N,D], `wo`
        [D,H·d], and what `summarize_inputs` takes.
        """
        G, N = k.shape[:2]
        held = [CacheView(k[g], v[g], torch.arange(N, device=k.device)) for g in range(G)]
        scoring = self.make_scoring_inputs(q, k, v, layer, inputs)
        return torch.stack(self._score_heads(held, q[:, -max(self.query_window, 1) :], N, layer, scoring))

    def make_scoring_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, inputs: Mapping[str, Any]
    ) -> ScoringInputs:
        """Scoring inputs of a whole prompt, from those that are given by hand; see `scores`."""
        (G, N, d), base, hidden = k.shape, inputs.get("rope_theta"), inputs.get("hidden")
        theta = None if base is None else 1.0 / (base ** (torch.arange(0, d, 2, device=k.device).float() / d))
        summary = self.summarize_inputs(k, v, inputs)
        if summary is None:
            heads = tuple(inputs.get("kv_heads") or range(G))
            read = ReadTokens(layer, q, N - q.shape[1], theta, None if hidden is None else hidden[:N], heads)
            summary = self.summarize(None, read)
        return ScoringInputs(tuple(range(G)), theta, summary, inputs.get("wo"))

    def norms(self, v: Tensor, wo: Tensor) -> Tensor:
        """Norms [G,N] that `critical` weighs by: of values v [G,N,d] behind the output matrix wo [D,H·d]."""
        G, _, d = v.shape
        return value_norms(v, split_output(wo, range(G), wo.shape[1] // d // G, d))

    def keep(self, scores: Tensor, norms: Tensor | None = None) -> Tensor:
        """Entries that a cut at the prompt's end keeps, bool [L,G,N], by scores and, for `critical`, `norms`."""
        L, G, N = scores.shape
        at, counts = torch.arange(N, device=scores.device), self.counts(N, L)
        weights = [None] * L if norms is None else [list(one) for one in norms]
        if self.allocation == "model":
            flat = None if norms is None else list(norms.flatten(0, 1))
            rows = self.keep_entries(list(scores.flatten(0, 1)), [at] * (L * G), counts[0], flat, tokens=N)
            return torch.stack(rows).view(L, G, N)
        layers = [self.keep_entries(list(scores[i]), [at] * G, counts[i], weights[i]) for i in range(L)]
        return torch.stack([torch.stack(rows) for rows in layers])

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
        entries that are held when it is read, and `scores` [G,N] of the whole prompt. Further inputs as in `scores`;
        with `allocation="model"` also `rivals`, the scores of all layers' cut heads [n,N] and where this layer's begin.
        """
        N, T = k.shape[1], 0
        extras = {"scores": self.scores(q, k, v, layer=layer, **inputs)} if N else {}
        if q_new is not None and k_new is not None and v_new is not None:
            T = q_new.shape[1]
            q, k, v = torch.cat((q, q_new), 1), torch.cat((k, k_new), 1), torch.cat((v, v_new), 1)
        mask, kept = replay(
            self, q, k, v, chunks=chunks or (N,), steps=T, layer=layer, layers=layers, inputs=inputs, **extras
        )
        extras["kept"] = torch.stack([torch.isin(torch.arange(N, device=one.device), one) for one in kept])
        rows = slice(N if T else 0, N + T)
        return Reference(masked_attention(q[:, rows], k, v, mask[:, rows]), mask[:, rows], extras)

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        if plan is None or plan.roles is None:
            return HeadRoles(full=((False,) * config.kv_heads,) * config.layers)
        return HeadRoles(full=tuple(tuple(bool(x) for x in row) for row in plan.roles))

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        return estimate_footprint(self, config, heads, prompt, new)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        return fit_budget(self, entries, config, self.head_plan(config, plan), prompt, new)

    # How it is done.

    @property
    def _summarizes(self) -> bool:
        return type(self).summarize is not EvictionRules.summarize

    def is_cut(self, held: Sequence[int], count: int) -> bool:
        """Whether a layer's heads that hold so many entries hold more than they should."""
        return sum(held) > count * len(held) or (self.allocation != "layer" and any(n > count for n in held))

    def keep_positions(
        self,
        heads: Sequence[CacheView],
        q: Tensor,
        tokens: int,
        layer: int,
        count: int,
        scoring: ScoringInputs | None = None,
    ) -> list[Tensor]:
        """Positions that stay of each head, ascending; queries q [H',w,d]."""
        scoring = ScoringInputs(tuple(range(len(heads)))) if scoring is None else scoring
        at = [head.positions.sort().values for head in heads]
        scores = self._score_heads(heads, q, tokens, layer, scoring)
        kept = self.keep_entries(scores, at, count, self._norms(heads, q, scoring))
        return [positions[one] for positions, one in zip(at, kept, strict=True)]

    def keep_entries(
        self,
        scores: Sequence[Tensor],
        positions: Sequence[Tensor],
        count: int,
        norms: Sequence[Tensor] | None = None,
        tokens: int | None = None,
    ) -> list[Tensor]:
        """Which entries of a layer's heads stay, per head bool [n]; of the model's where its `tokens` are given."""
        total = None if tokens is None else self.count_model(tokens, len(scores))
        if tokens is not None or self.allocation == "layer":
            kept = keep_per_layer(scores, positions, count, self.safeguard, self.safeguard_rule, total)
        else:
            kept = keep_per_head(scores, count)
        return self._choose_critical(kept, scores, norms, count) if self.critical else kept

    def _choose_critical(
        self, kept: Sequence[Tensor], scores: Sequence[Tensor], norms: Sequence[Tensor] | None, count: int
    ) -> list[Tensor]:
        """As many entries per head as are kept by score, chosen in two stages."""
        if norms is None:
            raise ValueError(f"{self.name} needs norms: critical weighs values by the output matrix")
        counts, competes = [int(one.sum()) for one in kept], self.allocation in {"layer", "model"}
        least = int(count * self.safeguard) if competes else int(self.first_stage > 0)
        if competes and self.safeguard > 0:
            least = max(least, 1)
        first = [min(max(int(self.first_stage * n), least), n) for n in counts]
        return keep_critical(scores, norms, counts, first, self.critical_epsilon)

    def _norms(self, heads: Sequence[CacheView], q: Tensor, scoring: ScoringInputs) -> list[Tensor] | None:
        """Norms of each head's values in order of position; None without `critical`. Queries q [H',w,d]."""
        if not self.critical or scoring.output is None:
            return None
        columns = split_output(scoring.output, scoring.kv_heads, q.shape[0] // len(heads), q.shape[-1])
        return [
            value_norms(head.v[head.positions.argsort()][None], columns[i : i + 1])[0] for i, head in enumerate(heads)
        ]

    def _score_heads(
        self, heads: Sequence[CacheView], q: Tensor, tokens: int, layer: int, scoring: ScoringInputs
    ) -> list[Tensor]:
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
            queries = take_rows(q, [g * group + i for g in which for i in range(group)]).to(wide)
            ids = tuple(scoring.kv_heads[g] for g in which)
            view = ScoringView(layer, queries, k, v, positions, tokens, ids, scoring.theta, scoring.summary)
            scores = self.score(view)
            if scores.shape != positions.shape or scores.isnan().any():
                message = (
                    f"{self.name} must score {list(positions.shape)} entries with numbers, not {list(scores.shape)}"
                )
                raise ValueError(message)
            found |= dict(zip(which, scores, strict=True))
        return [found[g] for g in range(len(heads))]
