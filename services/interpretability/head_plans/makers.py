"""The kinds of head plan, each with what it costs and how it is made, cell by cell.

A kind reads its own options of the spec. Knows cells, plans and parts of reports; knows no web, and nothing about where
plans are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

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
from services.interpretability.head_plans.mean_reach import POSITIONS, mean_reach
from services.interpretability.head_plans.passkey_data import PasskeyTexts
from services.interpretability.head_plans.razor import echo_induction, model_id, razor_plan, repeat_tokens
from shared.errors import InvalidOption, Malformed
from shared.lm.head_plan import HeadPlan, ModelId, Origin
from shared.lm.niah_prompts import build_haystack

if TYPE_CHECKING:
    from services.interpretability.experiments.head_plans import HeadPlansSpec

__all__ = ["MAKERS", "PlanMaker", "PlanResult", "Sources"]

DEFAULT_SHARE = 0.5
"""Share of full heads where none is asked for."""

RAZOR_PERIOD = 2500
"""Random tokens of the paper."""

CHARACTERS_PER_TOKEN = 8
"""Characters per token that are more than enough."""

STEPS_PER_CELL = 10
"""Training steps of one cell: what a kill can cost."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What kinds may look up: an artefact's text by its digest (NotFound where there is none)."""

    artefact: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan, None where the run was stopped or nothing was found, and what a report tells beside it."""

    plan: HeadPlan | None
    scalars: dict[str, Scalar] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class PlanMaker(Protocol):
    """One kind of plan, for one spec and model."""

    def __init__(self, spec: HeadPlansSpec, subject: StudiedModel, sources: Sources) -> None: ...

    def cost(self) -> Cost:
        """What it takes, or takes at most."""
        ...

    def make(self, progress: Progress) -> PlanResult:
        """Make it."""
        ...


class _PlanMaker:
    def __init__(self, spec: HeadPlansSpec, subject: StudiedModel, sources: Sources) -> None:
        self.spec, self.subject, self.sources = spec, subject, sources

    @property
    def model(self) -> ModelId:
        """What the plan says it was made for."""
        return model_id(self.subject.model, self.subject.name, self.subject.weights_sha256)


class RazorPlanMaker(_PlanMaker):
    """Echo and induction: one forward of random tokens that repeat."""

    @property
    def period(self) -> int:
        """K: as asked, or as published where the window holds it."""
        return self.spec.period or min(RAZOR_PERIOD, self.subject.window // self.spec.repeats)

    def cost(self) -> Cost:
        """One forward."""
        tokens = self.period * self.spec.repeats
        self.subject.check_window(tokens, "period")
        return Cost(1, tokens)

    def make(self, progress: Progress) -> PlanResult:
        """Scores in one cell, then razor's rule or a share by induction."""
        spec, net, period = self.spec, self.subject.model, self.period
        ids = repeat_tokens(net.config.vocab, period, spec.repeats, spec.seed)
        content = {"echo": [period, spec.repeats, spec.seed]}
        scores = progress.cell(content, lambda: echo_induction(net, ids, period).tolist())
        plan = razor_plan(
            net, period, spec.repeats, spec.echo, spec.induction, spec.seed, model=self.model, scores=scores
        )
        if spec.share is not None:
            plan = plan.with_share(spec.share, "induction")
        return PlanResult(plan)


class DuoPlanMaker(_PlanMaker):
    """Gates, trained while the model is frozen; ten steps are a cell, and a cell goes on from the one before."""

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
        """Teacher and student read each text; going back through the student costs about another reading."""
        tokens = sum(self.texts.length(step) for step in range(self.spec.steps))
        for length in self.spec.lengths:
            self.subject.check_window(length, "lengths")
        return Cost(2 * self.spec.steps, 2 * tokens, -(-self.spec.steps // STEPS_PER_CELL), partial=tokens)

    def make(self, progress: Progress) -> PlanResult:
        """Train, or go on training."""
        spec, recipe, texts = self.spec, self.recipe, self.texts
        facts = {**asdict(recipe), "lengths": spec.lengths, "passkeys": spec.passkeys, "words": spec.words}
        state: dict[str, Any] | None = None
        losses: list[list[float]] = []

        def work(first: int) -> dict[str, Any]:
            training = GateTraining(self.subject.model, recipe, state)
            said = [training.step(*texts.text(step)) for step in range(first, min(first + STEPS_PER_CELL, spec.steps))]
            return {"state": training.state(), "gates": training.gates, "losses": said}

        cells = progress.each(
            range(0, spec.steps, STEPS_PER_CELL), lambda first: {"duo": facts, "seed": spec.seed, "first": first}, work
        )
        gates: list[list[float]] = []
        for _, found in cells:
            state, gates = found["state"], found["gates"]
            losses += found["losses"]
        if progress.stopped or not gates:
            return PlanResult(None, tables=[_training_table(losses)])
        share = DEFAULT_SHARE if spec.share is None else spec.share
        plan = gate_plan(gates, share, model=self.model, spec=facts | {"share": share}, seed=spec.seed)
        scalars = {
            "distillation": Scalar(
                value=float(np.mean([d for d, _ in losses[-STEPS_PER_CELL:]])), note="Mean of the last."
            ),
            "mean_gate": Scalar(value=float(np.mean(gates)), note="1 is all open."),
            "open": Scalar(value=float((np.array(gates) > 0.5).mean()), note="Share of gates above 0.5."),
        }
        return PlanResult(
            plan, scalars, [_training_table(losses)], [_gate_histogram(gates)], _warn_of_equal_gates(gates)
        )


def _warn_of_equal_gates(gates: list[list[float]]) -> list[str]:
    spread = float(np.std(gates))
    return [] if spread > 0.05 else [f"The gates differ by {spread:.2g} only (sd): they need more or longer texts."]


def _training_table(losses: list[list[float]]) -> Table:
    means = [np.mean(losses[i : i + STEPS_PER_CELL], axis=0) for i in range(0, len(losses), STEPS_PER_CELL)]
    rows: list[list[Any]] = [[(i + 1) * STEPS_PER_CELL, float(d), float(g)] for i, (d, g) in enumerate(means)]
    caption = f"Means over {STEPS_PER_CELL} steps: how far the stream is from its teacher, and how open the gates are."
    return Table(name="training", columns=["step", "distillation", "mean gate"], rows=rows, caption=caption)


def _gate_histogram(gates: list[list[float]]) -> Bars:
    counts, edges = np.histogram(np.array(gates), bins=10, range=(0, 1))
    bars = [Bar(label=f"≥{low:.1f}", value=int(n)) for low, n in zip(edges, counts, strict=False)]
    caption = "How many key/value heads have which gate: near 1 they need the whole text."
    return Bars(name="gates", unit="heads", bars=bars, caption=caption)


class ActPlanMaker(_PlanMaker):
    """ACT's search: heads with sinks, each calibrated alone, kept where more answers are right."""

    @property
    def rule(self) -> SinkCalibration:
        """ACT's knobs."""
        spec = self.spec
        return SinkCalibration(spec.beta, spec.threshold, spec.relative_threshold, spec.excuse, spec.min_rows)

    def draw_questions(self, count: int, seed: int) -> list[Question]:
        """Questions of a seed; those of different seeds differ."""
        return make_questions(self.subject.tokenizer, count, facts=self.spec.facts, seed=2 * self.spec.seed + seed)

    def cost(self) -> Cost:
        """A forward per question for its sinks, one and parts of one for its heads, and two per held-out question."""
        spec = self.spec
        tried = sum(len(q.ids) for q in self.draw_questions(spec.samples, 0))
        held = sum(len(q.ids) for q in self.draw_questions(spec.check, 1))
        cells = 2 * spec.samples + spec.check
        return Cost(2 * (spec.samples + spec.check), 2 * (tried + held), cells, partial=tried * spec.candidates // 2)

    def make(self, progress: Progress) -> PlanResult:
        """Filter, try, choose, and check on other questions."""
        spec, net, facts = self.spec, self.subject.model, asdict(self.rule)
        asked, held_out = self.draw_questions(spec.samples, 0), self.draw_questions(spec.check, 1)
        counts = _run_questions(
            progress, asked, lambda q: {"sinks": q.ids, **facts}, lambda q: count_sinks(net, q, self.rule)
        )
        if counts is None:
            return PlanResult(None)
        tried = self._candidates(np.mean(counts, axis=0))
        found = _run_questions(
            progress,
            asked,
            lambda q: {"alone": _question_content(q), "heads": tried, **facts},
            lambda q: try_heads_alone(net, q, self.rule, tried),
        )
        if found is None:
            return PlanResult(None)
        plain, *alone = np.mean(found, axis=0).tolist()
        chosen = [head for head, share in zip(tried, alone, strict=True) if share > plain]
        held = _run_questions(
            progress,
            held_out,
            lambda q: {"together": _question_content(q), "heads": chosen, **facts},
            lambda q: [try_heads_together(net, q, self.rule, heads) for heads in ([], chosen)],
        )
        if held is None:
            return PlanResult(None)
        return self._made(tried, plain, alone, chosen, np.mean(held, axis=0).tolist())

    def _candidates(self, sinks: np.ndarray) -> list[Head]:
        """Heads [(layer, head)] with most sinks, in order of the model; heads without any are left out."""
        sinks = sinks.copy()
        sinks[: self.spec.skip] = 0
        order = np.argsort(-sinks, axis=None, kind="stable")[: self.spec.candidates]
        places = [divmod(int(i), sinks.shape[1]) for i in order if sinks.flat[i] > 0]
        return sorted((layer, head) for layer, head in places)

    def _made(
        self, tried: list[Head], plain: float, alone: list[float], chosen: list[Head], held: list[float]
    ) -> PlanResult:
        spec = self.spec
        rows: list[list[Any]] = sorted(
            ([head_name(h), share, share - plain] for h, share in zip(tried, alone, strict=True)), key=lambda r: -r[1]
        )
        table = Table(
            name="heads", columns=["head", "right alone", "gain"], rows=rows, caption=f"Uncalibrated: {plain:.3g}."
        )
        scalars = {
            "tried": Scalar(value=len(tried), note="Heads that have sinks, most first."),
            "plain": Scalar(value=plain, note="Share of right answers without calibration."),
            "held_out_plain": Scalar(value=held[0], note=f"The same on {spec.check} other questions."),
            "held_out": Scalar(value=held[1], note="With all chosen heads calibrated together."),
        }
        if not chosen:
            return PlanResult(None, scalars, [table], warnings=["No head makes more answers right: there is no plan."])
        told = [] if held[1] > held[0] else ["On other questions the chosen heads together bring nothing."]
        facts = asdict(self.rule) | {name: getattr(spec, name) for name in ("samples", "facts", "candidates", "skip")}
        plan = HeadPlan(
            schema_="head-plan/1",
            model=self.model,
            heads=chosen,
            rule="right answers rise when calibrated alone",
            made_by=Origin(experiment="act_search", spec=facts, seed=spec.seed),
        )
        return PlanResult(plan, scalars, [table], warnings=told)


def _run_questions(
    progress: Progress,
    asked: list[Question],
    content: Callable[[Question], Mapping[str, Any]],
    work: Callable[[Question], Any],
) -> list[Any] | None:
    """A value per question, or None where the run was stopped."""
    found = [value for _, value in progress.each(asked, content, work)]
    return None if progress.stopped else found


def _question_content(question: Question) -> list[Any]:
    return [question.ids, question.options, question.right]


class RetrievalPlanMaker(_PlanMaker):
    """A plan from evidence: the largest score of each group, and a share of all groups."""

    def cost(self) -> Cost:
        """Nothing is run."""
        return Cost(0, 0)

    def make(self, progress: Progress) -> PlanResult:
        """The plan of a retrieval report."""
        report, share = self._evidence(), DEFAULT_SHARE if self.spec.share is None else self.spec.share
        plan = progress.cell(
            {"report": json_digest(report), "share": share},
            lambda: HeadPlan.from_retrieval(report, share, kv_heads=self.subject.model.config.kv_heads).facts(),
        )
        return PlanResult(HeadPlan.parse(plan).check(self.subject.model.config, self.subject.weights_sha256))

    def _evidence(self) -> Mapping[str, Any]:
        given = self.spec.report
        if given is None:
            detail = "kind=retrieval needs a retrieval report."
            raise InvalidOption(detail, hint="retrieval-heads makes one; give its digest.", field="report")
        if isinstance(given, dict):
            return given
        try:
            found: Mapping[str, Any] = json.loads(self.sources.artefact(given))
        except ValueError as error:
            detail = f"What is kept under {given[:12]}… is no retrieval report."
            raise Malformed(detail, field="report") from error
        return found


class TablePlanMaker(_PlanMaker):
    """Gates that others published: plain tab-separated numbers."""

    def cost(self) -> Cost:
        """Nothing is run."""
        return Cost(0, 0)

    def make(self, progress: Progress) -> PlanResult:
        """The plan of the table."""
        text, share = self.spec.table, DEFAULT_SHARE if self.spec.share is None else self.spec.share
        if text is None:
            detail = "kind=table needs the table."
            raise InvalidOption(detail, hint="Lines are layers, columns key/value heads.", field="table")
        try:
            gates = [[float(cell) for cell in line.split()] for line in text.splitlines() if line.strip()]
        except ValueError as error:
            detail = f"The table holds what is no number: {error}."
            raise Malformed(detail, field="table") from error
        facts = {"table_sha256": json_digest(text), "share": share}
        if len({len(row) for row in gates}) != 1:
            detail = "The table's lines must hold equally many numbers."
            raise Malformed(detail, field="table")
        plan = progress.cell(
            {"table": gates, "share": share},
            lambda: gate_plan(gates, share, model=self.model, spec=facts, seed=self.spec.seed).facts(),
        )
        return PlanResult(HeadPlan.parse(plan).check(self.subject.model.config))


class StatisticPlanMaker(_PlanMaker):
    """Reach of mean queries and keys: one forward of prose, and nothing is trained."""

    @property
    def tokens(self) -> int:
        """Of the text: the longest of `lengths`."""
        return max(self.spec.lengths)

    def cost(self) -> Cost:
        """One forward."""
        self.subject.check_window(self.tokens, "lengths")
        return Cost(1, self.tokens)

    def make(self, progress: Progress) -> PlanResult:
        """Scores in one cell, then the top share of them."""
        spec, net = self.spec, self.subject.model
        text = build_haystack(self.tokens * CHARACTERS_PER_TOKEN, spec.seed)
        ids = self.subject.tokenizer.encode(text, special=False)[: self.tokens]
        content = {"statistic": [self.tokens, POSITIONS, spec.seed]}
        scores = progress.cell(content, lambda: mean_reach(net, ids).tolist())
        facts = {"tokens": len(ids), "positions": POSITIONS}
        share = DEFAULT_SHARE if spec.share is None else spec.share
        origin = Origin(experiment="duo_statistic", spec=facts | {"share": share}, seed=spec.seed)
        return PlanResult(HeadPlan.from_scores({"reach": scores}, "reach", share, model=self.model, made_by=origin))


MAKERS: Mapping[str, type[PlanMaker]] = {
    "razor": RazorPlanMaker,
    "duo": DuoPlanMaker,
    "act": ActPlanMaker,
    "statistic": StatisticPlanMaker,
    "retrieval": RetrievalPlanMaker,
    "table": TablePlanMaker,
}
"""Kind → how it is made."""
