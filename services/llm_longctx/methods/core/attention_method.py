"""Base class of attention methods: fields are knobs, hooks are the maths, `reference` is the oracle.

A method is one small file with one frozen class in this room; a scan finds it, and with it come its name on the wire,
its schema, CLI flags, docs and contract tests. Hooks are pure functions of read-only views: the engine owns memory,
kernels and schedules, and every hook defaults to dense. Knows nothing about pages, requests or text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.hook_inputs import (
    AttentionOutput,
    Chunk,
    DecodeView,
    PostPrefillView,
    PromptEndView,
    Replay,
    ReplayView,
)
from services.llm_longctx.methods.core.hook_results import (
    CacheUpdate,
    DecodePlan,
    Dense,
    Footprint,
    HeadRoles,
    PrefillPlan,
)
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan
from shared.sparsity import SparsityClaim


@dataclass(frozen=True, slots=True)
class Supports:
    """Operations of the engine that a method supports.

    Attributes:
        chunked_prefill: Whether prompts may be read in chunks; else the engine reads them in one (ACT).
        prefix_reuse: Whether a prefix cached under the same fingerprint may be used.
        preemption: `recompute`: pages may be dropped and prompt and answer read again; `refuse`: never preempted.
    """

    chunked_prefill: bool = True
    prefix_reuse: bool = True
    preemption: Literal["recompute", "refuse"] = "recompute"


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Result of an oracle, in float64.

    Attributes:
        out: Mixed values; shapes are the method's (see its `reference`).
        mask: Visible pairs, bool.
        extras: Further results of the method's maths, by name.
        log_weight: Added to the logits of visible pairs, shaped as `mask`, where some count more than once.
    """

    out: Tensor
    mask: Tensor
    extras: Mapping[str, Any] = field(default_factory=dict)
    log_weight: Tensor | None = None


class AttentionMethod(BaseModel):
    """How a decoder's attention is selected, weighed and remembered. Subclasses set `name` and override what differs.

    The class docstring is the help text, `Field(description=…)` that of a knob, and constraints on fields (`ge`, `le`)
    are what a request may ask for.

    Class attributes:
        name: Its name in requests.
        phases: Where it acts; `prefill` makes its knobs part of the prefix cache's fingerprint.
        actions: Any of `visibility`, `eviction`, `copy`, `transform`; what it does.
        granularity: `head`, `block` or `token`.
        evidence: Evidence that it decides by: `static`, `last query block`, `block means`, `last query`, `head plan`.
        supports: Operations of the engine that it supports.
        chunk_invariant: Whether chunk borders change nothing but rounding. Methods defined by their chunks (false) are
            read in chunks of exactly 512 and hit the prefix cache on that grid only.
        needs_plan: Whether it can't work without a HeadPlan (or a knob in its place).
        sparsity: Its claim of sparsity; required before anybody calls it sparse.
        contract_knobs: Small knobs, or several sets of them, under which the method does something on prompts of a few
            dozen tokens; its contract test runs with each. Every knob must matter next to one of the sets.
        optional_knobs: Knobs of a family of methods that some of its members have no use for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    phases: ClassVar[frozenset[Literal["prefill", "decode"]]] = frozenset()
    actions: ClassVar[frozenset[str]] = frozenset()
    granularity: ClassVar[Literal["head", "block", "token"]] = "head"
    evidence: ClassVar[str] = "static"
    supports: ClassVar[Supports] = Supports()
    chunk_invariant: ClassVar[bool] = True
    needs_plan: ClassVar[bool] = False
    sparsity: ClassVar[SparsityClaim | None] = None
    contract_knobs: ClassVar[Mapping[str, Any] | Sequence[Mapping[str, Any]]] = {}
    optional_knobs: ClassVar[frozenset[str]] = frozenset()

    @property
    def active_phases(self) -> frozenset[str]:
        """Where it acts under these knobs: `phases`, and what a knob adds to them."""
        return self.phases

    @property
    def min_uncached_tokens(self) -> int:
        """Tokens at a prompt's end that a cached prefix must leave to be read, because their queries are needed."""
        return 1

    @property
    def frees_memory(self) -> bool:
        """Whether it holds fewer entries than dense attention, so that a budget of bytes means something."""
        return "eviction" in self.actions

    @property
    def shares_layer_budget(self) -> bool:
        """Whether `estimate` is right for a layer's cut heads together, and the text decides how they share it."""
        return False

    @property
    def shares_model_budget(self) -> bool:
        """Whether `estimate` is right for all cut heads of the model together, and the text decides."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """Further inputs of its hooks: `hidden`, the attention input; `output`, the output matrix."""
        return frozenset()

    @property
    def cut_at_end(self) -> bool:
        """Whether heads are cut only when the whole prompt is read, and hold all of it until then."""
        return self.chunk_invariant

    # The oracle.

    def reference(self, q: Tensor, k: Tensor, v: Tensor, **inputs: Any) -> Reference:
        """Float64 evaluation without an engine: q [H,N,d], k and v [G,N,d] → out [H,N,d], mask [H,N,N].

        Obvious code, and the only truth the engine is tested against, for the heads that the method treats. Inputs that
        a method has no use for are ignored:

        * `q_new` [H,T,d], `k_new`, `v_new` [G,T,d]: decode steps behind a prompt of N tokens. Methods whose decoding is
          not the same rule as their reading take them: out [H,T,d], mask [H,T,N+T], and virtual entries are not in it.
        * `chunks`: lengths in which the rows are read; a step is a chunk of one. For methods whose chunks matter.
        * `layer` of `layers`, `rope_theta`: facts of the model. Further inputs are the method's own.
        """
        raise NotImplementedError

    # Before anything runs.

    def bind(self, plan: HeadPlan | None) -> Self:
        """This method with what a plan holds for it besides roles and heads; called once, before `head_plan`."""
        return self

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        """Roles and heads from an artefact, validated against the model already. Default: all heads are full.

        Called once per sequence; `plan` is the request's or the engine's. Layers with a sliding window of their own
        (Gemma 3) are outside every method: whatever is said about their heads is ignored. Raises InvalidOption: the
        method needs what the plan lacks, for example roles; the detail says what.
        """
        return HeadRoles()

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        """Entries held after `prompt` tokens were read and `new` produced. Default: all of them, everywhere.

        At least what the engine will hold, and at most a page per head above it, unless it says that it is a bound. A
        sliding head holds
        min(total, sink + slide + 1): the slot of the step's own entry counts. A virtual entry, or with `absorb` the
        place that waits for one, is one more.
        """
        return Footprint(((prompt + new,) * config.kv_heads,) * config.layers)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        """This method with knobs changed so that all heads together hold at most `entries` entries.

        Args:
            entries: The budget, over all layers and key/value heads.
            config: The model's facts.
            plan: As in `head_plan`.
            prompt: Tokens of the prompt.
            new: Tokens that may be produced.

        Raises:
            InvalidOption: No knobs meet it. The default changes none: it refuses budgets below what is held as it is.
        """
        footprint = self.estimate(config, self.head_plan(config, plan), prompt, new)
        held = sum(map(sum, footprint.entries)) + sum(map(sum, footprint.compact or ()))
        if entries < held:
            why = "can't be fitted" if self.frees_memory else "frees no memory"
            detail = f"{self.name} {why}: it holds {held:,} entries, more than the {entries:,} of the budget."
            raise InvalidOption(detail, hint="Ask for duo or razor, or leave the budget out.", field="longctx")
        return self

    # Prefill, per chunk and layer.

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan | Sequence[PrefillPlan]:
        """How the chunk's queries read: one plan for all heads of the view, or one per key/value head of it [G'].

        The view holds the layer's full heads: q [H',T,d] at positions offset … offset+T-1, k and v [G',S,d] from
        position 0. `Blocks` and `TokenLists` are for all heads at once. Where a layer has heads that are not full, a
        second call with `chunk.evicting` asks about those: k and v are then only the chunk's own [G',T,d], and `Dense`
        (everything that is still held, then the chunk causally) or `WindowSink` (by true positions) may be returned.
        """
        return Dense()

    def epilogue(self, view: AttentionOutput) -> tuple[Tensor, object]:
        """Change mixed values before the output projection: new out [H,T,d] and memo; prefill and decode (T = 1).

        Only called for layers that have `HeadRoles.calibrated` heads. `view.lse` [H,T] gives probabilities without a
        softmax: p = exp(q·k / sqrt(d) - lse). In decode `view.memo` is what the prefill's call returned.
        """
        return view.out, view.memo

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        """Decision after a chunk: entries to keep and copy, and a memo; called for every chunk and layer.

        `view.q` [H,T,d] are the chunk's queries, `view.heads[g]` what head g holds with the chunk: k, v [n,d],
        positions [n]. Retain orders may name heads with `view.full[g]` false only; compact copies any head. Where
        `view.last` is false a method that acts at the end of the prompt returns `CacheUpdate(memo=view.memo)`.
        """
        return CacheUpdate(memo=view.memo)

    # At a prompt's end, when all layers have read it.

    def replays(self, ids: Sequence[int]) -> Sequence[Replay]:
        """Tokens to run over the prompt before it is cut, one run after the other; none by default."""
        return ()

    def after_replay(self, view: ReplayView) -> object:
        """Memo after a replay, per layer."""
        return view.memo

    def after_prompt(self, view: PromptEndView) -> Mapping[int, CacheUpdate]:
        """Kept entries, by layer; for decisions that need all layers. Memos of layers that are not named go on."""
        return {}

    # Decode, per step and layer.

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        """Entries that the query q [H,d] at `step.position` reads, per key/value head. Default: everything held.

        `step.number` counts decode steps from 1. Called per sequence, layer and token, so it must be cheap: return
        shared constants and don't touch `step.heads` unless needed. Don't override it for methods that decode densely.
        """
        return DecodePlan()

    def after_decode(self, step: DecodeView, scores: Sequence[Tensor]) -> CacheUpdate:
        """Decision after a step whose plan had `want_scores`.

        `scores[g]` [H/G, n] are the probabilities of the group's queries over `step.heads[g]` (the same n and order,
        the new token's own entry included; softmax over what the view read). `CacheUpdate.compact` re-selects, `retain`
        evicts.
        """
        return CacheUpdate(memo=step.memo)

    # Derived by the engine; do not override.

    def overrides(self, hook: str) -> bool:
        """Whether a hook differs from the dense default, so that the engine can skip the others."""
        return getattr(type(self), hook) is not getattr(AttentionMethod, hook)

    def identity(self) -> dict[str, Any]:
        """Name and knobs that a prefix depends on: empty for methods that read prompts densely."""
        return {"method": self.name, **self.model_dump(mode="json")} if "prefill" in self.active_phases else {}

    def with_knobs(self, **knobs: Any) -> Self:
        """A copy with other knobs, validated. Raises pydantic.ValidationError: a knob is unknown or out of range."""
        return type(self).model_validate({**dict(self), **knobs})
