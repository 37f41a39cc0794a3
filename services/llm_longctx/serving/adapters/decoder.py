"""A decoder's voice: an attention method for each request, fitted to its budget.

Knows engines and methods; what any model's voice does, `voice` knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.llm_longctx.engine import Engine, GenerationRequest, RequestStats
from services.llm_longctx.serving.adapters.base import TextModelAdapter, priority_of
from services.llm_longctx.serving.method_selection import policy_for, usage_of
from services.llm_longctx.serving.request_state import Brought
from shared.api.text import GenerationOptions, LongctxUsage
from shared.lm.head_plan import HeadPlan

__all__ = ["DecoderAdapter"]

UNSAID = 256
"""Tokens of an answer that a memory budget foresees where the request sets no limit."""


@dataclass(frozen=True)
class DecoderAdapter(TextModelAdapter):
    """One decoder, ready to speak.

    Attributes:
        engine: Runs it; its scheduler is the adapter's.
        plans: Head plans of this model by name.
    """

    engine: Engine
    plans: Mapping[str, HeadPlan] = field(default_factory=dict)

    def prepare(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> GenerationRequest:
        """The request under the method that it asks for, or densely where that one is held back."""
        room = self.context - len(ids)
        most, asked = room if wanted is None else min(wanted, room), options.longctx
        policy = policy_for(self.engine, asked, self.plans, len(ids), min(most, UNSAID) if wanted is None else most)
        monitor = self.engine.monitor
        fallback = None if monitor is None else monitor.held_back_reason(policy)
        return GenerationRequest(
            ids,
            max_tokens=most,
            policy=policy if fallback is None else self.engine.dense,
            requested_policy=None if fallback is None else policy,
            boundaries=None if asked is None else asked.boundaries,
            stop_token_ids=self.tokenizer.eos,
            priority=priority_of(options),
            stats=RequestStats(fallback=fallback),
        )

    def usage(self, requests: Sequence[GenerationRequest]) -> LongctxUsage:
        """The method, its knobs, and the pages that were held."""
        return usage_of(requests, self.engine.kernels, self.engine.policy)
