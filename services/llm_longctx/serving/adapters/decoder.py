"""A decoder's voice: an attention method for each request, fitted to its budget.

Knows engines and methods; what any model's voice does, `voice` knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.llm_longctx.engine import Order, Scheduler
from services.llm_longctx.serving.adapters.base import TextModelAdapter, priority_of
from services.llm_longctx.serving.generation import Prompt
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
        plans: Head plans of this model by name.
    """

    scheduler: Scheduler
    plans: Mapping[str, HeadPlan] = field(default_factory=dict)

    def reading(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> Prompt:
        """The prompt under the method that the request asks for."""
        room = self.context - len(ids)
        most, asked = room if wanted is None else min(wanted, room), options.longctx
        policy = policy_for(
            self.scheduler.engine, asked, self.plans, len(ids), min(most, UNSAID) if wanted is None else most
        )
        scheduler = self.scheduler
        fallback = None if scheduler.watch is None else scheduler.watch.breach(policy)
        return Prompt(
            ids=ids,
            max_tokens=most,
            stops=options.stop or (),
            policy=policy if fallback is None else scheduler.engine.dense,
            wanted=None if fallback is None else policy,
            fallback=fallback,
            boundaries=None if asked is None else asked.boundaries,
            priority=priority_of(options),
        )

    def usage(self, orders: Sequence[Order]) -> LongctxUsage:
        """The method, its knobs, and the pages that were held."""
        engine = self.scheduler.engine
        return usage_of(orders, engine.kernels, engine.policy)
