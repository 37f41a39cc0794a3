"""Composition of attention methods: one for prefill, one for decoding, one for the heads that are cut.

(out, LSE) parts merge whatever made them, so each part speaks for its own phase and heads. Combinations that would
change what a part computes are refused with the reason. Knows the contract only, no method by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

from pydantic import SerializeAsAny
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Supports
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
    Footprint,
    HeadRoles,
    Pages,
    PrefillPlan,
)
from services.llm_longctx.methods.core.registry import method
from services.llm_longctx.methods.dense import DenseMethod
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan


class _Memos(NamedTuple):
    """Memory of each part."""

    prefill: object = None
    decode: object = None
    heads: object = None


class Composed(AttentionMethod):
    """One method reads prompts, one decodes, one decides about heads; each defaults to dense."""

    prefill: SerializeAsAny[AttentionMethod]
    decode: SerializeAsAny[AttentionMethod]
    heads: SerializeAsAny[AttentionMethod]

    @property
    def _parts(self) -> tuple[AttentionMethod, AttentionMethod, AttentionMethod]:
        return self.prefill, self.decode, self.heads

    # Facts of the class are facts of the parts here.

    @property
    def name(self) -> str:  # type: ignore[override]  # a composition is named after its parts
        """The parts' names."""
        return "+".join(dict.fromkeys(p.name for p in self._parts if not isinstance(p, DenseMethod))) or "dense"

    @property
    def supports(self) -> Supports:  # type: ignore[override]  # as above
        """Support common to all parts."""
        supports = [part.supports for part in self._parts]
        refuses = any(one.preemption == "refuse" for one in supports)
        return Supports(
            all(one.chunked_prefill for one in supports),
            all(one.prefix_reuse for one in supports),
            "refuse" if refuses else "recompute",
        )

    @property
    def chunk_invariant(self) -> bool:  # type: ignore[override]  # as above
        """Whether all parts are."""
        return all(p.chunk_invariant for p in self._parts)

    @property
    def active_phases(self) -> frozenset[str]:
        return frozenset[str]().union(*(p.active_phases for p in self._parts))

    @property
    def cut_at_end(self) -> bool:
        return self.heads.cut_at_end

    @property
    def min_uncached_tokens(self) -> int:
        return max(p.min_uncached_tokens for p in self._parts)

    @property
    def frees_memory(self) -> bool:
        return self.heads.frees_memory

    @property
    def shares_layer_budget(self) -> bool:
        return self.heads.shares_layer_budget

    @property
    def shares_model_budget(self) -> bool:
        return self.heads.shares_model_budget

    @property
    def needs(self) -> frozenset[str]:
        return frozenset[str]().union(*(p.needs for p in self._parts))

    def overrides(self, hook: str) -> bool:
        parts = {
            "prefill_plan": (self.prefill, self.heads),
            "decode_plan": (self.decode, self.heads),
            "after_decode": (self.decode, self.heads),
            "epilogue": (self.heads,),
            "after_prompt": (self.heads,),
        }.get(hook, self._parts)
        return any(p.overrides(hook) for p in parts)

    def identity(self) -> dict[str, Any]:
        identities = {"prefill": self.prefill.identity(), "heads": self.heads.identity()}
        return {name: facts for name, facts in identities.items() if facts}

    # Hooks.

    def bind(self, plan: HeadPlan | None) -> Self:
        parts = ("prefill", self.prefill), ("decode", self.decode), ("heads", self.heads)
        return self.model_copy(update={name: part.bind(plan) for name, part in parts})

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        return self.heads.head_plan(config, plan)

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        held = self.heads.estimate(config, heads, prompt, new)
        copies = self.decode.estimate(config, heads, prompt, new)
        if copies.compact is None:
            return held
        full = [heads.full_in(layer, config.kv_heads) for layer in range(config.layers)]
        masked = tuple(
            tuple(n if whole else 0 for n, whole in zip(*row, strict=True))
            for row in zip(copies.compact, full, strict=True)
        )
        return Footprint(held.entries, masked, is_bound=held.is_bound or copies.is_bound)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        return self.with_knobs(heads=self.heads.fit(entries, config, plan, prompt, new))

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan | Sequence[PrefillPlan]:
        memos = _memos(chunk.memo)
        if chunk.evicting:
            return self.heads.prefill_plan(replace(chunk, memo=memos.heads))
        return self.prefill.prefill_plan(replace(chunk, memo=memos.prefill))

    def epilogue(self, view: AttentionOutput) -> tuple[Tensor, object]:
        memos = _memos(view.memo)
        out, memo = self.heads.epilogue(replace(view, memo=memos.heads))
        return out, memos._replace(heads=memo)

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        memos = _memos(view.memo)
        read = self.prefill.after_prefill(replace(view, memo=memos.prefill))
        cut = self.heads.after_prefill(replace(view, memo=memos.heads))
        copied = self.decode.after_prefill(replace(view, memo=memos.decode))
        compact = {g: positions for g, positions in copied.compact.items() if view.full[g]}
        return CacheUpdate(cut.retain, compact, _Memos(read.memo, copied.memo, cut.memo))

    def replays(self, ids: Sequence[int]) -> Sequence[Replay]:
        return self.heads.replays(ids)

    def after_replay(self, view: ReplayView) -> object:
        memos = _memos(view.memo)
        return memos._replace(heads=self.heads.after_replay(replace(view, memo=memos.heads)))

    def after_prompt(self, view: PromptEndView) -> Mapping[int, CacheUpdate]:
        memos = [_memos(memo) for memo in view.memos]
        cut = self.heads.after_prompt(replace(view, memos=[memo.heads for memo in memos]))
        return {layer: replace(update, memo=memos[layer]._replace(heads=update.memo)) for layer, update in cut.items()}

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        memos = _memos(step.memo)
        plan = self.decode.decode_plan(replace(step, memo=memos.decode))
        if all(step.full):
            return plan
        want = plan.want_scores or self.heads.decode_plan(replace(step, memo=memos.heads)).want_scores
        return DecodePlan(tuple(plan.view(g) if full else Pages() for g, full in enumerate(step.full)), want)

    def after_decode(self, step: DecodeView, scores: Sequence[Tensor]) -> CacheUpdate:
        memos = _memos(step.memo)
        copied, cut = (
            part.after_decode(mine, scores) if part.decode_plan(mine).want_scores else CacheUpdate(memo=mine.memo)
            for part, mine in (
                (self.decode, replace(step, memo=memos.decode)),
                (self.heads, replace(step, memo=memos.heads)),
            )
        )
        compact = {g: positions for g, positions in copied.compact.items() if step.full[g]}
        return CacheUpdate(cut.retain, compact, memos._replace(decode=copied.memo, heads=cut.memo))


def compose(
    *,
    prefill: str | AttentionMethod = "dense",
    decode: str | AttentionMethod = "dense",
    plan: str | AttentionMethod | HeadPlan | Mapping[str, Any] | None = None,
) -> AttentionMethod:
    """Join methods whose phases differ.

    Args:
        prefill: How full heads read prompts.
        decode: How full heads decode.
        plan: Which heads are cut or calibrated: a method that works by a head plan, or a plan, which then is Duo's.

    Raises:
        InvalidOption: A part does not act where it is put, or two parts would change what the other computes.
    """
    heads = _heads(plan)
    first, second = (method(part) if isinstance(part, str) else part for part in (prefill, decode))
    for part, phase in ((first, "prefill"), (second, "decode")):
        if not isinstance(part, DenseMethod) and phase not in part.phases:
            _refuse(f"{part.name} does nothing in {phase}.")
        if part.overrides("head_plan"):
            _refuse(f"{part.name} decides about heads: it goes in as plan, not as {phase}.")
    if "transform" in heads.actions and not (isinstance(first, DenseMethod) and isinstance(second, DenseMethod)):
        _refuse(f"{heads.name} calibrates whole rows of attention, which {first.name} and {second.name} don't compute.")
    return Composed(prefill=first, decode=second, heads=heads)


def _heads(plan: str | AttentionMethod | HeadPlan | Mapping[str, Any] | None) -> AttentionMethod:
    if plan is None:
        return DenseMethod()
    if isinstance(plan, HeadPlan | Mapping):
        roles = HeadPlan.parse(plan).roles
        if roles is None:
            _refuse("the head plan has no roles.")
        return method("duo", roles=roles)
    part = method(plan) if isinstance(plan, str) else plan
    if not part.overrides("head_plan"):
        _refuse(f"{part.name} does not work by a head plan.")
    return part


def _refuse(reason: str) -> None:
    detail = f"These methods can't be composed: {reason}"
    raise InvalidOption(detail, hint="Put sparse reading in prefill, sparse decoding in decode.", field="longctx")


def _memos(memo: object) -> _Memos:
    return memo if isinstance(memo, _Memos) else _Memos()
