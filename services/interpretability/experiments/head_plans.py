"""Head plans of any loaded model: Razor's scores, Duo's trained gates, ACT's heads, or evidence that is there already.

What comes out is a `HeadPlan`, which the language service's methods read; under a name it is stored where that service
finds it at once. The work is cut into cells, so that a run that was killed goes on where it stopped. Each kind has a
file of its own for its maths; this one knows specs, stores and reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.model_registry import ModelRegistry, registry_for
from services.interpretability.core.report import Artefact, HeatMap, Report, Scalar, head_axes, to_matrix
from services.interpretability.core.result_store import ResultStore
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.head_plans.duo_gates import DuoLoss, duo_gate_loss, duo_gates
from services.interpretability.head_plans.makers import MAKERS, PlanResult, Sources
from services.interpretability.head_plans.razor import echo_induction, razor_plan, repeat_tokens
from shared.lm.head_plan import HeadPlan
from shared.lm.head_plan_store import PLAN_NAME, save_plan
from shared.registry import Card, LoadContext, Paper

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


class HeadPlansSpec(Spec):
    """Which plan is made, and how; options of other kinds than the one asked for change nothing."""

    kind: Literal["razor", "duo", "act", "statistic", "retrieval", "table"] = Field(
        "razor",
        description="Razor's scores, Duo's gates, ACT's heads, Duo's statistic of mean queries and keys, a "
        "retrieval report, or a published gate table.",
    )
    name: str | None = Field(
        None, pattern=PLAN_NAME, description="Store the plan for llm-longctx as `longctx.plan` NAME; left out, don't."
    )
    share: float | None = Field(
        None, ge=0, le=1, description="Share of full key/value heads; left out, half, or razor's own rule."
    )

    period: int | None = Field(
        None, ge=2, le=10_000, description="razor: random tokens; left out, 2,500 or as many as fit the window."
    )
    repeats: int = Field(4, ge=2, le=16, description="razor: how often they come.")
    echo: float = Field(0.01, ge=0, le=1, description="razor: share of key/value heads that are full by echo.")
    induction: float = Field(0.14, ge=0, le=1, description="razor: share that is full by induction.")

    steps: int = Field(200, ge=1, le=10_000, description="duo: texts that gates are trained on, one a step.")
    lengths: list[int] = Field(
        [256, 416, 560, 704, 864, 1024],
        min_length=1,
        max_length=60,
        description="duo: tokens of the texts; statistic: the longest is read.",
    )
    passkeys: int = Field(4, ge=1, le=10, description="duo: passkeys hidden in a text.")
    words: int = Field(8, ge=1, le=64, description="duo: words of a passkey.")
    sink: int = Field(128, ge=0, le=65536, description="duo: first tokens that a streaming head sees in training.")
    recent: int = Field(256, ge=1, le=65536, description="duo: last tokens that it sees in training.")
    rate: float = Field(0.02, gt=0, le=1, description="duo: peak learning rate.")
    reg: float = Field(0.05, ge=0, le=10, description="duo: weight of the gates' mean in the loss.")

    samples: int = Field(50, ge=2, le=2000, description="act: questions by which heads are judged.")
    check: int = Field(50, ge=2, le=2000, description="act: other questions, for the chosen heads together.")
    facts: int = Field(10, ge=4, le=20, description="act: facts that a question chooses among.")
    candidates: int = Field(20, ge=1, le=4096, description="act: heads that are tried, those with most sinks.")
    skip: int = Field(2, ge=0, le=200, description="act: first layers that are left alone.")
    beta: float = Field(0.4, ge=0, le=1, description="act: share of their attention that sinks keep.")
    threshold: float = Field(0.1, gt=0, le=1, description="act: mean attention above which a token is a sink.")
    relative_threshold: float | None = Field(None, gt=0, description="act: alpha, for a threshold of alpha / tokens.")
    excuse: Literal["first", "zero"] = Field("first", description="act: the sink that is let off.")
    min_rows: int = Field(0, ge=0, description="act: columns that fewer queries see are no sinks.")

    report: str | dict[str, Any] | None = Field(
        None, description="retrieval: a retrieval-report/1, or the digest of a kept one."
    )
    table: str | None = Field(
        None, max_length=200_000, description="table: tab-separated gates, a line per layer, a column per head."
    )


class HeadPlans(Experiment[HeadPlansSpec]):
    """Makes the plans by which llm-longctx decides what a head keeps."""

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

    def __init__(self, models: ModelRegistry, store: ResultStore, weights: Path | None = None) -> None:
        super().__init__(models, store)
        self._weights = weights

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Ready at once; named plans go into the folder of imported weights, which all services share."""
        if place.threads:
            torch.set_num_threads(place.threads)
        return cls(registry_for(place), ResultStore(place.cache / "probe"), place.weights)

    def cost(self, spec: HeadPlansSpec, subject: StudiedModel) -> Cost:
        """As the kind says."""
        return MAKERS[spec.kind](spec, subject, self._sources).cost()

    def run(self, spec: HeadPlansSpec, subject: StudiedModel, progress: Progress) -> Report:
        """Make the plan; store it where it has a name."""
        made = MAKERS[spec.kind](spec, subject, self._sources).make(progress)
        if made.plan is not None and spec.name is not None and self._weights is not None:
            save_plan(made.plan, self._weights, subject.name, spec.name)
        return _report(spec, subject, made)

    @property
    def _sources(self) -> Sources:
        return Sources(self.store.read_artefact)


def _report(spec: HeadPlansSpec, subject: StudiedModel, made: PlanResult) -> Report:
    plan = made.plan
    artefacts = [] if plan is None else [Artefact.of("head-plan.json", plan.text())]
    scalars = dict(made.scalars)
    if plan is not None and plan.roles is not None:
        full = sum(map(sum, plan.roles))
        scalars = {"full_heads": Scalar(value=full, note=f"of {sum(map(len, plan.roles))} key/value heads")} | scalars
    if plan is not None and plan.heads is not None:
        note = f"of {subject.layers * subject.heads} query heads"
        scalars = {"calibrated_heads": Scalar(value=len(plan.heads), note=note)} | scalars
    return Report(
        title=f"Head plan by {spec.kind}",
        warnings=made.warnings,
        scalars=scalars,
        tables=made.tables,
        grids=_grids(plan, subject),
        bars=made.bars,
        artefacts=artefacts,
    )


def _grids(plan: HeadPlan | None, subject: StudiedModel) -> list[HeatMap]:
    """The plan's evidence and its roles, as maps."""
    if plan is None:
        return []
    found = [
        _grid(name, table, "Evidence of each head; larger values are kept first.")
        for name, table in plan.scores.items()
    ]
    if plan.roles is not None:
        found.append(_grid("roles", plan.roles, f"1: the head keeps its whole history. {plan.rule or 'As given'}."))
    if plan.heads is not None:
        chosen = torch.zeros(subject.layers, subject.heads)
        for layer, head in plan.heads:
            chosen[layer, head] = 1
        found.append(_grid("calibrated", chosen.tolist(), "1: the head's sinks give up attention."))
    return found


def _grid(name: str, values: Sequence[Sequence[float]], caption: str) -> HeatMap:
    return HeatMap(name=name, values=to_matrix(values), **head_axes(len(values), len(values[0])), caption=caption)
