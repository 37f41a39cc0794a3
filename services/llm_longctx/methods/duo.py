"""DuoAttention (2024): full heads keep everything, streaming heads the first `sink` and the last `recent` entries."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference
from services.llm_longctx.methods.core.head_roles import Roles, count_full, entries_by_role, resolve_heads
from services.llm_longctx.methods.core.hook_inputs import Chunk, PostPrefillView
from services.llm_longctx.methods.core.hook_results import (
    CacheUpdate,
    Dense,
    Footprint,
    HeadRoles,
    PrefillPlan,
    RetentionPolicy,
    WindowSink,
)
from services.llm_longctx.methods.core.oracle import causal_mask, masked_attention
from services.llm_longctx.methods.core.sparsity_claims import build_method_claim
from shared.lm.attention_math import streaming_mask
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan


class Duo(AttentionMethod):
    """Heads that retrieve keep their whole history; the others keep the first and the last tokens only.

    As released, a chunk of the prompt is read in full before heads are cut, so results depend on the chunks, and a
    decode step sees sink + recent entries and itself. `window="exact"` applies the training mask everywhere instead.
    """

    name: ClassVar[str] = "duo"
    phases = frozenset({"prefill", "decode"})
    actions = frozenset({"eviction"})
    granularity = "head"
    evidence = "head plan"
    chunk_invariant = False
    needs_plan = True
    sparsity = build_method_claim("duo", granularity="head", mask="static", decode="sparse")

    sink: int = Field(64, ge=0, le=65536, description="First entries that a streaming head keeps.")
    recent: int = Field(256, ge=1, le=1 << 20, description="Last entries that a streaming head keeps.")
    window: Literal["released", "exact"] = Field("released", description="`exact`: the training mask in every phase.")
    share: float | None = Field(None, ge=0, le=1, description="Share of full heads by the plan's scores.")
    roles: Roles | None = Field(None, description="Per layer and key/value head 1 (full) or 0; instead of a plan.")

    contract_knobs: ClassVar = ({"sink": 2, "recent": 6}, {"sink": 3, "recent": 5, "window": "exact"})

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor | None = None,
        chunks: Sequence[int] | None = None,
        **inputs: Any,
    ) -> Reference:
        """Every head streaming under the training mask (section 3), or mixed with dense by `gate` [G] (section 4).

        With `chunks`, rows are read as they are served: in a window as released, what is held when a chunk begins and
        the chunk itself.
        """
        H, N = q.shape[:2]
        mask = streaming_mask(N, self.sink, self.recent)
        if chunks is not None and self.window == "released":
            begins = torch.repeat_interleave(torch.tensor([0, *chunks]).cumsum(0)[:-1], torch.tensor(chunks))[:, None]
            at = torch.arange(N)
            mask = causal_mask(N) & ((at < self.sink) | (at >= begins - self.recent))
        streaming, dense = masked_attention(q, k, v, mask), masked_attention(q, k, v, causal_mask(N))
        out = streaming
        if gate is not None:
            share = gate.double().clamp(0, 1).repeat_interleave(H // k.shape[0])[:, None, None]
            out = share * dense + (1 - share) * streaming
        return Reference(out, mask.expand(H, N, N), {"streaming": streaming, "dense": dense})

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        return resolve_heads(self.name, config, plan, self.roles, self.share)

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan:
        return WindowSink(self.sink, self.recent) if chunk.evicting and self.window == "exact" else Dense()

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        kept = {
            g: RetentionPolicy.ends(head.positions, self.sink, self._between, slide=True)
            for g, (head, full) in enumerate(zip(view.heads, view.full, strict=True))
            if not full
        }
        return CacheUpdate(retain=kept, memo=view.memo)

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        return Footprint(entries_by_role(heads, config, prompt + new, self._cut(prompt + new)))

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        full, cut = prompt + new, self._cut(prompt + new)
        heads = config.layers * config.kv_heads
        most = (entries - heads * cut) // max(full - cut, 1) if full > cut else heads
        if most < 0 or entries < heads * cut:
            detail = f"Streaming heads alone hold {heads * cut:,} entries, more than the {entries:,} of the budget."
            raise InvalidOption(detail, hint="Lower sink and recent.", field="longctx")
        if (self.roles or plan is not None) and count_full(self.head_plan(config, plan), config) <= most:
            return self
        return self.with_knobs(share=min(most, heads) / heads, roles=None)

    @property
    def _between(self) -> int:
        """Recent entries held between steps; the exact window counts the token that reads."""
        return self.recent - (self.window == "exact")

    def _cut(self, total: int) -> int:
        return min(total, self.sink + self._between + 1)
