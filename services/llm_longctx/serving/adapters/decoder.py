"""Decoder adapter: an attention method for each request, fitted to its budget.

Knows engines and methods; what all adapters share is in `base`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from fovea.api.longctx import LongctxUsage
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from services.llm_longctx.api.errors import ModelNotFound
from services.llm_longctx.engine import Engine, GenerationRequest, RequestStats
from services.llm_longctx.serving.adapters.base import RequestState, TextModelAdapter, priority_of
from services.llm_longctx.serving.lora.loaded import LoadedAdapters
from services.llm_longctx.serving.lora.store import LoraStore
from services.llm_longctx.serving.method_selection import build_method_usage, select_served_policy
from shared.lm.head_plan_store import HeadPlanStore
from shared.lm.lora import LoraAdapter
from shared.storage import ObjectStore

DEFAULT_BUDGET_TOKENS = 256
"""Tokens of an answer that a memory budget plans for where the request sets no limit."""


@dataclass(frozen=True)
class DecoderAdapter(TextModelAdapter):
    """Adapter of one decoder.

    Attributes:
        engine: Runs it; its scheduler is the adapter's.
        plans: Head plans of this model by name: those of the package, and of one tenant.
        objects: Users' data, of all tenants; None where nothing is stored.
        tenant: Whose requests it serves.
        lora: Name of the LoRA adapter that they ask for, if any.
        lora_folder: Adapters that all tenants may use.
        loaded: Adapters in memory.
    """

    engine: Engine
    plans: HeadPlanStore = field(default_factory=lambda: HeadPlanStore(""))
    objects: ObjectStore | None = None
    tenant: str = "local"
    lora: str | None = None
    lora_folder: Path | None = None
    loaded: LoadedAdapters = field(default_factory=LoadedAdapters)

    def of_tenant(self, tenant: str, model: str | None = None) -> Self:
        lora = None if model == self.name else model
        return replace(self, plans=self.plans.of_tenant(tenant), tenant=tenant, lora=lora)

    @property
    def served_as(self) -> str:
        return self.lora or self.name

    @property
    def tenant_objects(self) -> ObjectStore | None:
        """Store of the tenant; None where nothing is stored."""
        return None if self.objects is None else self.objects.of_tenant(self.tenant)

    @property
    def loras(self) -> LoraStore:
        """The LoRA adapters that the tenant may name."""
        return LoraStore(self.tenant_objects, self.lora_folder, self.name)

    @cached_property
    def lora_weights(self) -> LoraAdapter | None:
        """The LoRA adapter that requests ask for; None for the model as it is. Blocks.

        Raises ModelNotFound: it has just been deleted; QueueFull: adapters in use leave no room for it.
        """
        if self.lora is None:
            return None
        store = self.loras
        if (entry := store.find(self.lora)) is None or entry.parent != self.name:
            raise ModelNotFound(f"There is no model {self.lora[:80]!r}.", field="model")
        return self.loaded.get(entry.sha256, lambda: store.read(entry).build(self.engine.model))

    def prepare(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        state: RequestState | None,
    ) -> GenerationRequest:
        room = self.context - len(ids)
        most, longctx = room if max_tokens is None else min(max_tokens, room), options.longctx
        planned = min(most, DEFAULT_BUDGET_TOKENS) if max_tokens is None else most
        policy, unmet, missed = select_served_policy(self.engine, longctx, self.plans, len(ids), planned)
        monitor = self.engine.monitor
        boundaries = None if longctx is None else longctx.boundaries
        if boundaries is not None and boundaries != sorted({0, *boundaries, len(ids)}):
            detail = f"boundaries must ascend from 0 to the end of the prompt, which has {len(ids):,} tokens."
            raise InvalidOption(detail, hint="Count them with /tokenize.", field="longctx.boundaries")
        held_back = None if monitor is None else monitor.held_back_reason(policy)
        return GenerationRequest(
            ids,
            max_tokens=most,
            policy=policy if held_back is None else self.engine.dense,
            fallback_from=None if held_back is None else policy,
            boundaries=boundaries,
            stop_token_ids=self.tokenizer.eos,
            priority=priority_of(options),
            stats=RequestStats(fallback=unmet or held_back, budget_missed=None if held_back else missed),
            adapter=self.lora_weights,
        )

    def usage(self, requests: Sequence[GenerationRequest]) -> LongctxUsage:
        return build_method_usage(requests, self.engine.kernels, self.engine.policy)
