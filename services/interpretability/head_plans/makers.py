"""Makers of head plans, one class per kind: its cost, and how the plan is made cell by cell.

A maker reads its own options of the spec. Knows cells, plans and parts of reports; knows nothing about where plans are
stored.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from fovea.errors import InvalidOption, Malformed
from services.interpretability.attention.head_scores import top_heads
from services.interpretability.attention.retrieval_score import Head
from services.interpretability.core.experiment import Cost, Progress
from services.interpretability.core.report import Bar, Bars, Scalar, Table, head_name, json_digest
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.head_plans.act import (
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
from shared.lm.head_plan import HeadPlan, Origin, QueryCentres
from shared.lm.niah_prompts import build_haystack

ReadArtefact = Callable[[str], bytes]
"""Returns an artefact by its digest, or raises NotFound."""

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
    """Maker of one kind of plan, for one spec and model.

    Attributes:
        model: The model that the plan names as its own.
        share: Share of full heads.
    """

    def __init__(self, spec: HeadPlansSpec, subject: StudiedModel, read_artefact: ReadArtefact) -> None:
        self.spec, self.subject, self.read_artefact = spec, subject, read_artefact
        self.model = model_id(subject.model, subject.name, subject.weights_sha256)
        self.share = DEFAULT_SHARE if spec.share is None else spec.share

    def read_prose(self, tokens: int) -> list[int]:
        """Return so many tokens of generated prose."""
        text = build_haystack(tokens * CHARACTERS_PER_TOKEN, self.spec.seed)
        return self.subject.tokenizer.encode(text, special=False)[:tokens]

    def cost(self) -> Cost:
        """Cost, or its upper bound; nothing is run unless a maker says so."""
        return Cost(0, 0)

    @abstractmethod
    def make(self, progress: Progress) -> PlanResult:
        """Make the plan, cell by cell."""


class RazorPlanMaker(PlanMaker):
    """RazorAttention: echo and induction scores from one forward of random tokens that repeat."""

    @property
    def _period(self) -> int:
        return self.spec.period or min(RAZOR_PERIOD, self.subject.window // self.spec.repeats)

    def cost(self) -> Cost:
        tokens = self._period * self.spec.repeats
        self.subject.check_window(tokens, "period")
        return Cost(1, tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, net, period = self.spec, self.subject.model, self._period
        ids = repeat_tokens(net.config.vocab, period, spec.repeats, spec.seed)
        content = {"echo": [period, spec.repeats, spec.seed]}
        scores = progress.cell(content, lambda: echo_induction(net, ids, period).tolist())
        rule = (period, spec.repeats, spec.echo, spec.induction, spec.seed)
        plan = razor_plan(net, *rule, model=self.model, scores=scores)
        if spec.share is not None:
            plan = plan.with_share(spec.share, "induction")
        return PlanResult(plan)


class DuoPlanMaker(PlanMaker):
    """DuoAttention: gates trained on the frozen model; a cell of ten steps continues from the one before."""

    @property
    def _texts(self) -> PasskeyTexts:
        spec = self.spec
        return PasskeyTexts(self.subject.tokenizer, tuple(spec.lengths), spec.passkeys, spec.words, spec.seed)

    def cost(self) -> Cost:
        tokens = sum(self._texts.length(step) for step in range(self.spec.steps))
        for length in self.spec.lengths:
            self.subject.check_window(length, "lengths")
        return Cost(2 * self.spec.steps, 2 * tokens, -(-self.spec.steps // STEPS_PER_CELL), partial=tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, texts = self.spec, self._texts
        recipe = GateRecipe(spec.steps, spec.rate, spec.sink, spec.recent, spec.reg)
        facts = {**asdict(recipe), "lengths": spec.lengths, "passkeys": spec.passkeys, "words": spec.words}
        state: dict[str, Any] | None = None
        gates: list[list[float]] = []
        losses: list[list[float]] = []

        def work(first: int) -> dict[str, Any]:
            training = GateTraining(self.subject.model, recipe, state)
            steps = [training.step(*texts.text(step)) for step in range(first, min(first + STEPS_PER_CELL, spec.steps))]
            return {"state": training.state(), "gates": training.gates, "losses": steps}

        starts = range(0, spec.steps, STEPS_PER_CELL)
        for _, value in progress.each(starts, lambda first: {"duo": facts, "seed": spec.seed, "first": first}, work):
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
    rows = [[min((i + 1) * STEPS_PER_CELL, len(losses)), float(d), float(g)] for i, (d, g) in enumerate(means)]
    caption = f"Means over {STEPS_PER_CELL} steps: how far the stream is from its teacher, and how open the gates are."
    return Table.of("training", "step, distillation, mean gate", rows, caption)


def _gate_histogram(gates: list[list[float]]) -> Bars:
    counts, edges = np.histogram(np.array(gates), bins=10, range=(0, 1))
    bars = [Bar(label=f"≥{low:.1f}", value=int(n)) for low, n in zip(edges, counts, strict=False)]
    caption = "How many key/value heads have which gate: near 1 they need the whole text."
    return Bars(name="gates", unit="heads", bars=bars, caption=caption)


class ActPlanMaker(PlanMaker):
    """ACT's head search: heads with sinks, each calibrated alone, kept where more answers are right."""

    def _draw_questions(self) -> tuple[list[Question], list[Question]]:
        """Questions to choose heads by, and others to check them."""
        codec, spec = self.subject.tokenizer, self.spec
        tuning = make_questions(codec, spec.samples, facts=spec.facts, seed=2 * spec.seed)
        return tuning, make_questions(codec, spec.check, facts=spec.facts, seed=2 * spec.seed + 1)

    def cost(self) -> Cost:
        spec = self.spec
        tuning, held_out = (sum(len(q.ids) for q in questions) for questions in self._draw_questions())
        cells = 2 * spec.samples + spec.check
        questions, partial = 2 * (spec.samples + spec.check), tuning * spec.candidates // 2
        return Cost(questions, 2 * (tuning + held_out), cells, partial)

    def make(self, progress: Progress) -> PlanResult:
        spec, net = self.spec, self.subject.model
        rule = SinkCalibration(spec.beta, spec.threshold, spec.relative_threshold, spec.excuse, spec.min_rows)
        facts, (tuning, held_out) = asdict(rule), self._draw_questions()

        def average(questions: list[Question], what: str, heads: list[Head], work: Callable[[Question], Any]) -> Any:
            """Mean over questions of a cell each; None if the run was stopped."""
            more = {"heads": heads, **facts}
            cells = progress.each(questions, lambda q: {what: [q.ids, q.options, q.right], **more}, work)
            values = [value for _, value in cells]
            return None if progress.stopped else np.mean(values, axis=0)

        if (sinks := average(tuning, "sinks", [], lambda q: count_sinks(net, q, rule))) is None:
            return PlanResult(None)
        sinks[: spec.skip] = 0
        tried = sorted(head for head in top_heads(sinks, 1.0)[: spec.candidates] if sinks[head] > 0)
        verdicts = average(tuning, "alone", tried, lambda q: try_heads_alone(net, q, rule, tried))
        if verdicts is None:
            return PlanResult(None)
        plain, *alone = verdicts.tolist()
        chosen = [head for head, share in zip(tried, alone, strict=True) if share > plain]

        def check(question: Question) -> list[bool]:
            return [try_heads_together(net, question, rule, heads) for heads in ([], chosen)]

        if (checked := average(held_out, "together", chosen, check)) is None:
            return PlanResult(None)
        uncalibrated, calibrated = checked.tolist()
        by_share = sorted(zip(tried, alone, strict=True), key=lambda pair: -pair[1])
        rows = [[head_name(head), share, share - plain] for head, share in by_share]
        table = Table.of("heads", "head, right alone, gain", rows, f"Uncalibrated: {plain:.3g}.")
        scalars = {
            "tried": Scalar(value=len(tried), note="Heads that have sinks, most first."),
            "plain": Scalar(value=plain, note="Share of right answers without calibration."),
            "held_out_plain": Scalar(value=uncalibrated, note=f"The same on {spec.check} other questions."),
            "held_out": Scalar(value=calibrated, note="With all chosen heads calibrated together."),
        }
        if not chosen:
            return PlanResult(None, scalars, [table], warnings=["No head makes more answers right: there is no plan."])
        warnings = [] if calibrated > uncalibrated else ["On other questions the chosen heads together bring nothing."]
        facts |= {name: getattr(spec, name) for name in ("samples", "facts", "candidates", "skip")}
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
        config, report = self.subject.model.config, self.spec.report
        if report is None:
            detail = "kind=retrieval needs a retrieval report."
            raise InvalidOption(detail, hint="retrieval-heads makes one; give its digest.", field="report")
        if isinstance(report, str):
            try:
                evidence = json.loads(self.read_artefact(report))
            except ValueError as error:
                raise Malformed(f"The artefact {report[:12]}… is not a retrieval report.", field="report") from error
        else:
            evidence = report
        plan = HeadPlan.from_retrieval(evidence, self.share, kv_heads=config.kv_heads)
        return PlanResult(plan.check(config, self.subject.weights_sha256))


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
        if len({len(row) for row in gates}) != 1 or not np.isfinite(gates).all():
            raise Malformed("The table's lines must hold equally many finite numbers.", field="table")
        plan = gate_plan(gates, share, model=self.model, spec=facts, seed=self.spec.seed)
        return PlanResult(plan.check(self.subject.model.config))


class StatisticPlanMaker(PlanMaker):
    """Duo's untrained statistic: the reach of mean queries and keys, from one forward of prose."""

    def cost(self) -> Cost:
        tokens = max(self.spec.lengths)
        self.subject.check_window(tokens, "lengths")
        return Cost(1, tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, net, tokens = self.spec, self.subject.model, max(self.spec.lengths)
        ids = self.read_prose(tokens)
        content = {"statistic": [tokens, POSITIONS, spec.seed]}
        scores = progress.cell(content, lambda: mean_reach(net, ids).tolist())
        facts = {"tokens": len(ids), "positions": POSITIONS}
        origin = Origin(experiment="duo_statistic", spec=facts | {"share": self.share}, seed=spec.seed)
        plan = HeadPlan.from_scores({"reach": scores}, "reach", self.share, model=self.model, made_by=origin)
        return PlanResult(plan)


class CentresPlanMaker(PlanMaker):
    """TriAttention's query centres: means over a few texts of prose."""

    @property
    def _lengths(self) -> list[int]:
        most, tokens = max(self.spec.lengths), self.spec.tokens
        return [min(most, tokens - begin) for begin in range(0, tokens, most)]

    def cost(self) -> Cost:
        self.subject.check_window(max(self._lengths), "lengths")
        return Cost(1, self.spec.tokens)

    def make(self, progress: Progress) -> PlanResult:
        spec, net = self.spec, self.subject.model
        ids = self.read_prose(spec.tokens)
        lengths = self._lengths
        parts = [ids[end - n : end] for n, end in zip(lengths, accumulate(lengths), strict=True)]
        found = progress.cell({"centres": [lengths, spec.seed]}, lambda: query_centres(net, parts).model_dump())
        origin = Origin(experiment="query_centres", spec={"tokens": len(ids), "texts": len(parts)}, seed=spec.seed)
        centres = QueryCentres.model_validate(found)
        plan = HeadPlan(schema_="head-plan/1", model=self.model, made_by=origin, centres=centres)
        return PlanResult(plan.check(net.config))


MAKERS: Mapping[str, type[PlanMaker]] = {
    "razor": RazorPlanMaker, "duo": DuoPlanMaker, "act": ActPlanMaker, "statistic": StatisticPlanMaker,
    "centres": CentresPlanMaker, "retrieval": RetrievalPlanMaker, "table": TablePlanMaker,
}  # fmt: skip
"""Maker of each kind."""
