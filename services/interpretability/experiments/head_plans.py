"""Head-plans experiment: Razor's scores, Duo's trained gates, ACT's heads, or plans from existing evidence.

The result is a `HeadPlan`, which the attention methods of llm-longctx read; a named plan is stored where that service
finds it at once. Work is cut into cells, so a killed run resumes. The kinds are in `head_plans/makers`; this file knows
specs, stores and reports.
"""

from typing import Self

import numpy as np

from services.interpretability.core.experiment import Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import Artefact, HeatMap, Report, Scalar, head_map
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.head_plans.duo_gates import DuoLoss, duo_gate_loss, duo_gates
from services.interpretability.head_plans.makers import MAKERS, PlanMaker, PlanResult
from services.interpretability.head_plans.razor import echo_induction, razor_plan, repeat_tokens
from services.interpretability.head_plans.spec import HeadPlansSpec
from shared.lm.head_plan_store import save_plan
from shared.registry import LoadContext, Paper
from shared.storage import ObjectStore

__all__ = [
    "DuoLoss", "HeadPlans", "HeadPlansSpec", "duo_gate_loss", "duo_gates", "echo_induction", "razor_plan",
    "repeat_tokens",
]  # fmt: skip

_EXAMPLE = {"kind": "duo", "steps": 20, "lengths": [192, 256], "passkeys": 1, "words": 2, "sink": 4, "recent": 32}


class HeadPlans(Experiment[HeadPlansSpec]):
    """Makes the plans by which llm-longctx decides which entries a head keeps."""

    In = HeadPlansSpec
    route = "heads/plans"
    card = probe_card(
        "head-plans",
        "Makes head plans for long contexts: which key/value heads keep everything, or which heads calibrate.",
        Paper.on_arxiv(
            "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads",
            2025,
            "2410.10819",
            "ICLR",
        ),
        "Also after RazorAttention (echo and induction) and ACT (head search); see `kind`.",
        "The same spec, seed and model give the same plan, to the digest.",
        "A share of full heads is the quantile's, not the gates': state budgets in bytes.",
        **_EXAMPLE,
    )

    objects: ObjectStore | None = None

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        found = super().load(context)
        found.objects = context.objects
        return found

    def cost(self, spec: HeadPlansSpec, subject: StudiedModel) -> Cost:
        return self._maker(spec, subject).cost()

    def run(self, spec: HeadPlansSpec, subject: StudiedModel, progress: Progress) -> Report:
        result = self._maker(spec, subject, progress.tenant).make(progress)
        if result.plan is not None and spec.name is not None and self.objects is not None:
            save_plan(result.plan, self.objects.of_tenant(progress.tenant), subject.name, spec.name)
        return _report(spec, subject, result)

    def _maker(self, spec: HeadPlansSpec, subject: StudiedModel, tenant: str = "local") -> PlanMaker:
        return MAKERS[spec.kind](spec, subject, self.store.of_tenant(tenant).read_artefact)


def _report(spec: HeadPlansSpec, subject: StudiedModel, result: PlanResult) -> Report:
    """The plan's evidence and its roles, as maps and numbers, with what its maker reports."""
    plan, maps, scalars = result.plan, list[HeatMap](), dict[str, Scalar]()
    kinds = {subject.model.config.kv_heads: "key/value head", subject.heads: "head"}
    if plan is not None:
        evidence = "Evidence of each head; larger values are kept first."
        maps += [head_map(name, of, evidence, kinds.get(len(of[0]), "head")) for name, of in plan.scores.items()]
    if plan is not None and plan.roles is not None:
        note = f"of {sum(map(len, plan.roles))} key/value heads"
        scalars["full_heads"] = Scalar(value=sum(map(sum, plan.roles)), note=note)
        caption = f"1: the head keeps its whole history. {plan.rule or 'As given'}."
        maps.append(head_map("roles", plan.roles, caption, kinds.get(len(plan.roles[0]), "head")))
    if plan is not None and plan.heads is not None:
        of_all = f"of {subject.layers * subject.heads} query heads"
        scalars["calibrated_heads"] = Scalar(value=len(plan.heads), note=of_all)
        chosen = np.zeros((subject.layers, subject.heads))
        for head in plan.heads:
            chosen[head] = 1
        maps.append(head_map("calibrated", chosen, "1: the head's sinks give up attention."))
    return Report(
        title=f"Head plan by {spec.kind}",
        warnings=result.warnings,
        scalars=scalars | result.scalars,
        tables=result.tables,
        grids=maps,
        bars=result.bars,
        artefacts=[] if plan is None else [Artefact.of("head-plan.json", plan.text())],
    )
