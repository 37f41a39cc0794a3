"""Makers of head plans, one class per kind: its cost, and how the plan is made cell by cell.

A maker reads its own options of the spec. Knows cells, plans and parts of reports; knows nothing about where plans are
stored.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from fovea.errors import InvalidOption, Malformed
from services.interpretability.core.experiment import Cost, Progress
from services.interpretability.core.report import Bar, Bars, Scalar, Table, head_name, json_digest
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.head_plans.act import (
    Head,
    Question,
    SinkCalibration,
    count_sinks,
    make_questions,
    try_heads_alone,
    try_heads_together,
)
from services.interpretability.head_plans.duo_gates import GateRecipe, GateTraining, gate_plan
from services.interpretability.head_plans.passkey_data import PasskeyTexts
from services.interpretability.head_plans.razor import echo_induction, model_id, razor_plan, repeat_tokens
from services.interpretability.head_plans.spec import HeadPlansSpec
from services.interpretability.head_plans.statistic import POSITIONS, mean_reach, query_centres
from shared.lm.head_plan import HeadPlan, ModelId, Origin, QueryCentres
from shared.lm.niah_prompts import build_haystack

Contents = Callable[[Question], Mapping[str, Any]]
"""Facts that the cell of a question depends on."""

ReadArtefact = Callable[[str], str]
"""Returns an artefact's text by its digest, or raises NotFound."""

DEFAULT_SHARE = 0.5
"""Share of full heads, unless the spec names one."""

RAZOR_PERIOD = 2500
"""Random tokens of the paper's probe."""

CHARACTERS_PER_TOKEN = 8
"""Upper bound of characters per token, to generate enough text."""

STEPS_PER_CELL = 10
"""Training steps per cell: the most that a kill can cost."""


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan with the parts of its report; the plan is None if the run was stopped or nothing was found."""

    plan: HeadPlan | None
    scalars: dict[str, Scalar] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class PlanMaker(ABC):
    """Maker of one kind of plan, for one spec and model."""

    def __init__(self, spec: HeadPlansSpec, subject: StudiedModel, read_artefact: ReadArtefact) -> None:
        self.spec, self.subject, self.read_artefact = spec, subject, read_artefact

    @property
    def model(self) -> ModelId:
        """The model that the plan names as its own."""
        return model_id(self.subject.model, self.subject.name, self.subject.weights_sha256)

    @property
    def share(self) -> float:
        """Share of full heads."""
        return DEFAULT_SHARE if self.spec.share is None else self.spec.share

    def cost(self) -> Cost:
        """Cost, or its upper bound; nothing is run unless a maker says so."""
        return Cost(0, 0)

    @abstractmethod
    def make(self, progress: Progress) -> PlanResult:
        """Make the plan, cell by cell."""


class RazorPlanMaker(PlanMaker):
    """RazorAttention: echo and induction scores from one forward of random tokens that repeat."""

    @property
    def period(self) -> int:
        """K: from the spec, or as published where it fits the window."""
        return self.spec.period or min(RAZOR_PERIOD, self.subject.window // self.spec.repeats)

    def cost(self) -> Cost:
        tokens = self.period * self.spec.repeats
        self.subject.check_window(tokens, "period")
        return Cost(1, tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, net, period = self.spec, self.subject.model, self.period
        ids = repeat_tokens(net.config.vocab, period, spec.repeats, spec.seed)
        content = {"echo": [period, spec.repeats, spec.seed]}
        scores = progress.cell(content, lambda: echo_induction(net, ids, period).tolist())
        rule: Any = {"echo": spec.echo, "induction": spec.induction, "model": self.model, "scores": scores}
        plan = razor_plan(net, period, spec.repeats, seed=spec.seed, **rule)
        if spec.share is not None:
            plan = plan.with_share(spec.share, "induction")
        return PlanResult(plan)


class DuoPlanMaker(PlanMaker):
    """DuoAttention: gates trained on the frozen model; a cell of ten steps continues from the one before."""

    @property
    def texts(self) -> PasskeyTexts:
        """The training texts."""
        spec = self.spec
        return PasskeyTexts(self.subject.tokenizer, tuple(spec.lengths), spec.passkeys, spec.words, spec.seed)

    @property
    def recipe(self) -> GateRecipe:
        """How gates are trained."""
        return GateRecipe(self.spec.steps, self.spec.rate, self.spec.sink, self.spec.recent, self.spec.reg)

    def cost(self) -> Cost:
        tokens = sum(self.texts.length(step) for step in range(self.spec.steps))
        for length in self.spec.lengths:
            self.subject.check_window(length, "lengths")
        return Cost(2 * self.spec.steps, 2 * tokens, -(-self.spec.steps // STEPS_PER_CELL), partial=tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, recipe, texts = self.spec, self.recipe, self.texts
        facts = {**asdict(recipe), "lengths": spec.lengths, "passkeys": spec.passkeys, "words": spec.words}
        state: dict[str, Any] | None = None
        losses: list[list[float]] = []

        def work(first: int) -> dict[str, Any]:
            training = GateTraining(self.subject.model, recipe, state)
            steps = [training.step(*texts.text(step)) for step in range(first, min(first + STEPS_PER_CELL, spec.steps))]
            return {"state": training.state(), "gates": training.gates, "losses": steps}

        cells = progress.each(
            range(0, spec.steps, STEPS_PER_CELL), lambda first: {"duo": facts, "seed": spec.seed, "first": first}, work
        )
        gates: list[list[float]] = []
        for _, value in cells:
            state, gates = value["state"], value["gates"]
            losses += value["losses"]
        if progress.stopped or not gates:
            return PlanResult(None, tables=[_training_table(losses)])
        facts |= {"share": self.share}
        plan = gate_plan(gates, self.share, model=self.model, spec=facts, seed=spec.seed)
        last = float(np.mean([distilled for distilled, _ in losses[-STEPS_PER_CELL:]]))
        scalars = {
            "distillation": Scalar(value=last, note="Mean of the last."),
            "mean_gate": Scalar(value=float(np.mean(gates)), note="1 is all open."),
            "open": Scalar(value=float((np.array(gates) > 0.5).mean()), note="Share of gates above 0.5."),
        }
        spread = float(np.std(gates))
        few = f"The gates differ by {spread:.2g} only (sd): they need more or longer texts."
        bars, warnings = [_gate_histogram(gates)], [] if spread > 0.05 else [few]
        return PlanResult(plan, scalars, [_training_table(losses)], bars, warnings)


def _training_table(losses: list[list[float]]) -> Table:
    means = [np.mean(losses[i : i + STEPS_PER_CELL], axis=0) for i in range(0, len(losses), STEPS_PER_CELL)]
    rows = [[(i + 1) * STEPS_PER_CELL, float(d), float(g)] for i, (d, g) in enumerate(means)]
    caption = f"Means over {STEPS_PER_CELL} steps: how far the stream is from its teacher, and how open the gates are."
    return Table.of("training", "step, distillation, mean gate", rows, caption)


def _gate_histogram(gates: list[list[float]]) -> Bars:
    counts, edges = np.histogram(np.array(gates), bins=10, range=(0, 1))
    bars = [Bar(label=f"≥{low:.1f}", value=int(n)) for low, n in zip(edges, counts, strict=False)]
    caption = "How many key/value heads have which gate: near 1 they need the whole text."
    return Bars(name="gates", unit="heads", bars=bars, caption=caption)


class ActPlanMaker(PlanMaker):
    """ACT's head search: heads with sinks, each calibrated alone, kept where more answers are right."""

    @property
    def rule(self) -> SinkCalibration:
        """ACT's options."""
        spec = self.spec
        return SinkCalibration(spec.beta, spec.threshold, spec.relative_threshold, spec.excuse, spec.min_rows)

    def draw_questions(self, count: int, seed: int) -> list[Question]:
        """Draw the questions of a seed; those of different seeds differ."""
        return make_questions(self.subject.tokenizer, count, facts=self.spec.facts, seed=2 * self.spec.seed + seed)

    def cost(self) -> Cost:
        spec = self.spec
        tuning = sum(len(q.ids) for q in self.draw_questions(spec.samples, 0))
        held_out = sum(len(q.ids) for q in self.draw_questions(spec.check, 1))
        cells = 2 * spec.samples + spec.check
        questions, partial = 2 * (spec.samples + spec.check), tuning * spec.candidates // 2
        return Cost(questions, 2 * (tuning + held_out), cells, partial)

    def make(self, progress: Progress) -> PlanResult:
        spec, net, facts = self.spec, self.subject.model, asdict(self.rule)
        tuning, held_out = self.draw_questions(spec.samples, 0), self.draw_questions(spec.check, 1)

        def run(questions: list[Question], content: Contents, work: Callable[[Question], Any]) -> Any:
            values = [value for _, value in progress.each(questions, lambda q: {**content(q), **facts}, work)]
            return None if progress.stopped else values

        counts = run(tuning, lambda q: {"sinks": q.ids}, lambda q: count_sinks(net, q, self.rule))
        if counts is None:
            return PlanResult(None)
        tried = self._candidates(np.mean(counts, axis=0))
        verdicts = run(
            tuning,
            lambda q: {"alone": [q.ids, q.options, q.right], "heads": tried},
            lambda q: try_heads_alone(net, q, self.rule, tried),
        )
        if verdicts is None:
            return PlanResult(None)
        plain, *alone = np.mean(verdicts, axis=0).tolist()
        chosen = [head for head, share in zip(tried, alone, strict=True) if share > plain]
        checked = run(
            held_out,
            lambda q: {"together": [q.ids, q.options, q.right], "heads": chosen},
            lambda q: [try_heads_together(net, q, self.rule, heads) for heads in ([], chosen)],
        )
        if checked is None:
            return PlanResult(None)
        return self._build_result(tried, plain, alone, chosen, np.mean(checked, axis=0).tolist())

    def _candidates(self, sinks: np.ndarray) -> list[Head]:
        """Heads [(layer, head)] with most sinks, in order of the model; heads without any are left out."""
        sinks = sinks.copy()
        sinks[: self.spec.skip] = 0
        order = np.argsort(-sinks, axis=None, kind="stable")[: self.spec.candidates]
        places = [divmod(int(i), sinks.shape[1]) for i in order if sinks.flat[i] > 0]
        return sorted((layer, head) for layer, head in places)

    def _build_result(
        self, tried: list[Head], plain: float, alone: list[float], chosen: list[Head], held_out: list[float]
    ) -> PlanResult:
        spec = self.spec
        by_share = sorted(zip(tried, alone, strict=True), key=lambda pair: -pair[1])
        rows = [[head_name(head), share, share - plain] for head, share in by_share]
        table = Table.of("heads", "head, right alone, gain", rows, f"Uncalibrated: {plain:.3g}.")
        scalars = {
            "tried": Scalar(value=len(tried), note="Heads that have sinks, most first."),
            "plain": Scalar(value=plain, note="Share of right answers without calibration."),
            "held_out_plain": Scalar(value=held_out[0], note=f"The same on {spec.check} other questions."),
            "held_out": Scalar(value=held_out[1], note="With all chosen heads calibrated together."),
        }
        if not chosen:
            return PlanResult(None, scalars, [table], warnings=["No head makes more answers right: there is no plan."])
        warnings = [] if held_out[1] > held_out[0] else ["On other questions the chosen heads together bring nothing."]
        facts = asdict(self.rule) | {name: getattr(spec, name) for name in ("samples", "facts", "candidates", "skip")}
        plan = HeadPlan(
            schema_="head-plan/1",
            model=self.model,
            heads=chosen,
            rule="right answers rise when calibrated alone",
            made_by=Origin(experiment="act_search", spec=facts, seed=spec.seed),
        )
        return PlanResult(plan, scalars, [table], warnings=warnings)


class RetrievalPlanMaker(PlanMaker):
    """Plan from a retrieval report: the largest score of each group, and a share of all groups."""

    def make(self, progress: Progress) -> PlanResult:
        report, share, groups = self._evidence(), self.share, self.subject.model.config.kv_heads
        plan = progress.cell(
            {"report": json_digest(report), "share": share},
            lambda: HeadPlan.from_retrieval(report, share, kv_heads=groups).facts(),
        )
        return PlanResult(HeadPlan.parse(plan).check(self.subject.model.config, self.subject.weights_sha256))

    def _evidence(self) -> Mapping[str, Any]:
        report = self.spec.report
        if report is None:
            detail = "kind=retrieval needs a retrieval report."
            raise InvalidOption(detail, hint="retrieval-heads makes one; give its digest.", field="report")
        if isinstance(report, dict):
            return report
        try:
            evidence: Mapping[str, Any] = json.loads(self.read_artefact(report))
        except ValueError as error:
            raise Malformed(f"The artefact {report[:12]}… is not a retrieval report.", field="report") from error
        return evidence


class TablePlanMaker(PlanMaker):
    """Plan from published gates: plain tab-separated numbers."""

    def make(self, progress: Progress) -> PlanResult:
        text, share = self.spec.table, self.share
        if text is None:
            detail = "kind=table needs the table."
            raise InvalidOption(detail, hint="Lines are layers, columns key/value heads.", field="table")
        try:
            gates = [[float(cell) for cell in line.split()] for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise Malformed(f"The table holds something other than numbers: {error}.", field="table") from error
        facts = {"table_sha256": json_digest(text), "share": share}
        if len({len(row) for row in gates}) != 1:
            raise Malformed("The table's lines must hold equally many numbers.", field="table")
        plan = progress.cell(
            {"table": gates, "share": share},
            lambda: gate_plan(gates, share, model=self.model, spec=facts, seed=self.spec.seed).facts(),
        )
        return PlanResult(HeadPlan.parse(plan).check(self.subject.model.config))


class StatisticPlanMaker(PlanMaker):
    """Duo's untrained statistic: the reach of mean queries and keys, from one forward of prose."""

    @property
    def tokens(self) -> int:
        """Of the text: the longest of `lengths`."""
        return max(self.spec.lengths)

    def cost(self) -> Cost:
        self.subject.check_window(self.tokens, "lengths")
        return Cost(1, self.tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, net = self.spec, self.subject.model
        text = build_haystack(self.tokens * CHARACTERS_PER_TOKEN, spec.seed)
        ids = self.subject.tokenizer.encode(text, special=False)[: self.tokens]
        content = {"statistic": [self.tokens, POSITIONS, spec.seed]}
        scores = progress.cell(content, lambda: mean_reach(net, ids).tolist())
        facts = {"tokens": len(ids), "positions": POSITIONS}
        origin = Origin(experiment="duo_statistic", spec=facts | {"share": self.share}, seed=spec.seed)
        table = {"reach": scores}
        return PlanResult(HeadPlan.from_scores(table, "reach", self.share, model=self.model, made_by=origin))


class CentresPlanMaker(PlanMaker):
    """TriAttention's query centres: means over a few texts of prose."""

    @property
    def texts(self) -> list[int]:
        """Lengths of the texts."""
        most, tokens = max(self.spec.lengths), self.spec.tokens
        return [min(most, tokens - begin) for begin in range(0, tokens, most)]

    def cost(self) -> Cost:
        self.subject.check_window(max(self.texts), "lengths")
        return Cost(1, self.spec.tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, net = self.spec, self.subject.model
        text = build_haystack(spec.tokens * CHARACTERS_PER_TOKEN, spec.seed)
        ids = self.subject.tokenizer.encode(text, special=False)[: spec.tokens]
        parts = [ids[end - n : end] for n, end in zip(self.texts, accumulate(self.texts), strict=True)]
        found = progress.cell({"centres": [self.texts, spec.seed]}, lambda: query_centres(net, parts).model_dump())
        origin = Origin(experiment="query_centres", spec={"tokens": len(ids), "texts": len(parts)}, seed=spec.seed)
        centres = QueryCentres.model_validate(found)
        plan = HeadPlan(schema_="head-plan/1", model=self.model, made_by=origin, centres=centres)
        return PlanResult(plan.check(net.config))


MAKERS: Mapping[str, type[PlanMaker]] = {
    "razor": RazorPlanMaker,
    "duo": DuoPlanMaker,
    "act": ActPlanMaker,
    "statistic": StatisticPlanMaker,
    "centres": CentresPlanMaker,
    "retrieval": RetrievalPlanMaker,
    "table": TablePlanMaker,
}
"""Maker of each kind."""
