"""Head-plans experiment: Razor's scores, Duo's trained gates, ACT's heads, or plans from existing evidence.

The result is a `HeadPlan`, which the attention methods of llm-longctx read; a named plan is stored where that service
finds it at once. Work is cut into cells, so a killed run resumes. The kinds are in `head_plans/makers`; this file knows
specs, stores and reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch

from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress
from services.interpretability.core.model_registry import ModelRegistry, registry_for
from services.interpretability.core.report import Artefact, HeatMap, Report, Scalar, head_axes, to_matrix
from services.interpretability.core.result_store import ResultStore
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.head_plans.duo_gates import DuoLoss, duo_gate_loss, duo_gates
from services.interpretability.head_plans.makers import MAKERS, PlanMaker, PlanResult
from services.interpretability.head_plans.razor import echo_induction, razor_plan, repeat_tokens
from services.interpretability.head_plans.spec import HeadPlansSpec
from shared.lm.head_plan import HeadPlan
from shared.lm.head_plan_store import save_plan
from shared.registry import Card, LoadContext, Paper
from shared.storage import ObjectStore

__all__ = [
    "DuoLoss",
    "HeadPlans",
    "HeadPlansSpec",
    "duo_gate_loss",
    "duo_gates",
    "echo_induction",
    "razor_plan",
    "repeat_tokens",
]


class HeadPlans(Experiment[HeadPlansSpec]):
    """Makes the plans by which llm-longctx decides which entries a head keeps."""

    In = HeadPlansSpec
    route: ClassVar[str] = "heads/plans"
    card: ClassVar[Card] = Card(
        name="head-plans", task="probe", licence="Apache-2.0",
        summary="Makes head plans for long contexts: which key/value heads keep everything, or which heads calibrate.",
        paper=Paper(title="DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads",
                    venue="ICLR", year=2025, url="https://arxiv.org/abs/2410.10819"),
        notes=(
            "Also after RazorAttention (echo and induction) and ACT (head search); see `kind`.",
            "The same spec, seed and model give the same plan, to the digest.",
            "A share of full heads is the quantile's, not the gates': state budgets in bytes.",
            NO_GRAPH,
        ),
        example={
            "lm": EXAMPLE_LM, "seed": 0, "kind": "duo", "steps": 20, "lengths": [192, 256], "passkeys": 1, "words": 2,
            "sink": 4, "recent": 32,
        },
    )  # fmt: skip

    def __init__(self, models: ModelRegistry, store: ResultStore, objects: ObjectStore | None = None) -> None:
        super().__init__(models, store)
        self._objects = objects

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        if context.threads:
            torch.set_num_threads(context.threads)
        return cls(registry_for(context), ResultStore.of_context(context), context.objects)

    def cost(self, spec: HeadPlansSpec, subject: StudiedModel) -> Cost:
        return self._maker(spec, subject).cost()

    def run(self, spec: HeadPlansSpec, subject: StudiedModel, progress: Progress) -> Report:
        result = self._maker(spec, subject, progress.tenant).make(progress)
        if result.plan is not None and spec.name is not None and self._objects is not None:
            save_plan(result.plan, self._objects.of_tenant(progress.tenant), subject.name, spec.name)
        return _report(spec, subject, result)

    def _maker(self, spec: HeadPlansSpec, subject: StudiedModel, tenant: str = "local") -> PlanMaker:
        return MAKERS[spec.kind](spec, subject, self.store.of_tenant(tenant).read_artefact)


def _report(spec: HeadPlansSpec, subject: StudiedModel, result: PlanResult) -> Report:
    plan = result.plan
    artefacts = [] if plan is None else [Artefact.of("head-plan.json", plan.text())]
    scalars = dict(result.scalars)
    if plan is not None and plan.roles is not None:
        full = sum(map(sum, plan.roles))
        scalars = {"full_heads": Scalar(value=full, note=f"of {sum(map(len, plan.roles))} key/value heads")} | scalars
    if plan is not None and plan.heads is not None:
        note = f"of {subject.layers * subject.heads} query heads"
        scalars = {"calibrated_heads": Scalar(value=len(plan.heads), note=note)} | scalars
    return Report(
        title=f"Head plan by {spec.kind}",
        warnings=result.warnings,
        scalars=scalars,
        tables=result.tables,
        grids=_plan_maps(plan, subject),
        bars=result.bars,
        artefacts=artefacts,
    )


def _plan_maps(plan: HeadPlan | None, subject: StudiedModel) -> list[HeatMap]:
    """The plan's evidence and its roles, as maps."""
    if plan is None:
        return []
    maps = [
        _head_map(name, table, "Evidence of each head; larger values are kept first.")
        for name, table in plan.scores.items()
    ]
    if plan.roles is not None:
        maps.append(_head_map("roles", plan.roles, f"1: the head keeps its whole history. {plan.rule or 'As given'}."))
    if plan.heads is not None:
        chosen = torch.zeros(subject.layers, subject.heads)
        for layer, head in plan.heads:
            chosen[layer, head] = 1
        maps.append(_head_map("calibrated", chosen.tolist(), "1: the head's sinks give up attention."))
    return maps


def _head_map(name: str, values: Sequence[Sequence[float]], caption: str) -> HeatMap:
    return HeatMap(name=name, values=to_matrix(values), **head_axes(len(values), len(values[0])), caption=caption)
