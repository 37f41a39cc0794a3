"""Experiments that are wrong, and for each the checks that must refuse it; and one that is new and right."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.model_registry import TINY
from services.interpretability.core.report import Report, Scalar
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.deconstruction import Deconstruction
from services.interpretability.experiments.head_patterns import HeadPatterns
from services.interpretability.experiments.logit_lens import LogitLens
from shared.registry import CallContext, Card, Paper
from tests.contract.checks import experiments as checks
from tests.contract.checks.weights import disturbed

__all__ = ["RIGHT_EXPERIMENTS", "WRONG_EXPERIMENTS"]


def _named(kind: type[Experiment[Any]], name: str) -> Card:
    return kind.card.model_copy(update={"name": name})


class IgnoresSeed(HeadPatterns):
    """Draws the same under every seed."""

    card = _named(HeadPatterns, "ignores-seed")
    route: ClassVar[str] = "ignores-seed"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        return super().run(spec.model_copy(update={"seed": 0}), subject, progress)


class DrawsFreely(LogitLens):
    """Draws from a generator that nobody seeded."""

    card = _named(LogitLens, "draws-freely")
    route: ClassVar[str] = "draws-freely"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        report = super().run(spec, subject, progress)
        drawn = {"drawn": Scalar(value=float(np.random.default_rng().random()))}
        return report.model_copy(update={"scalars": report.scalars | drawn})


class DoesNotResume(Deconstruction):
    """Keeps no cell."""

    card = _named(Deconstruction, "does-not-resume")
    route: ClassVar[str] = "does-not-resume"

    def begin(self, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
        return Progress(run, cells=self.cost(spec, subject).cells)


class _Renamed(Progress):
    """Cells whose content is what `name` makes of it."""

    def __init__(self, inner: Progress, name: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        vars(self).update(vars(inner))
        self.name = name

    def cell(self, content: Mapping[str, Any], work: Callable[[], Any], note: str = "") -> Any:
        return super().cell(self.name(content), work, note)


class NeverFindsCells(Deconstruction):
    """Keeps cells under names that it never finds again."""

    card = _named(Deconstruction, "never-finds-cells")
    route: ClassVar[str] = "never-finds-cells"

    def begin(self, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
        return _Renamed(super().begin(spec, subject, run), lambda content: {**content, "at": time.time_ns()})


class TakesOtherCells(Deconstruction):
    """Names its cells without the text that they depend on."""

    card = _named(Deconstruction, "takes-other-cells")
    route: ClassVar[str] = "takes-other-cells"

    def begin(self, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
        def name(content: Mapping[str, Any]) -> Mapping[str, Any]:
            return {key: value for key, value in content.items() if key != "ids"}

        return _Renamed(super().begin(spec, subject, run), name)


class WorksBeforehand(Deconstruction):
    """Computes everything outside of its cells, and hands them what is done."""

    card = _named(Deconstruction, "works-beforehand")
    route: ClassVar[str] = "works-beforehand"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        super().run(spec, subject, Progress())
        return super().run(spec, subject, progress)


class StudiesItsOwn(LogitLens):
    """Studies another model than the one that was asked for."""

    card = _named(LogitLens, "studies-its-own")
    route: ClassVar[str] = "studies-its-own"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        with torch.no_grad():
            subject.model(subject.tensor([subject.encode(spec.text)]))
        return super().run(spec, self.models.get(TINY), progress)


class ReadsTheDigest(LogitLens):
    """Its numbers follow from the name of the weights, not from what the model does."""

    card = _named(LogitLens, "reads-the-digest")
    route: ClassVar[str] = "reads-the-digest"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        report = super().run(spec, subject, progress)
        told = {"score": Scalar(value=int(subject.weights_sha256[:8], 16) / 2**32)}
        return report.model_copy(update={"scalars": report.scalars | told})


class ReadsNothing(LogitLens):
    """Calls the model and reports something else."""

    card = _named(LogitLens, "reads-nothing")
    route: ClassVar[str] = "reads-nothing"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        super().run(spec, subject, progress)
        return Report(title="Nothing", scalars={"length": Scalar(value=len(spec.text))})


class GoesOn(Deconstruction):
    """Works on for nobody."""

    card = _named(Deconstruction, "goes-on")
    route: ClassVar[str] = "goes-on"

    def predict(self, batch: Sequence[Any], run: CallContext) -> list[Any]:
        return super().predict(batch, CallContext())


class UnderestimatesItself(LogitLens):
    """Takes twice what its estimate tells."""

    card = _named(LogitLens, "underestimates-itself")
    route: ClassVar[str] = "underestimates-itself"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        super().run(spec, subject, progress)
        return super().run(spec, subject, progress)


class KeepsTheLastModel(LogitLens):
    """Changes what it is told to study."""

    card = _named(LogitLens, "changes-the-model")
    route: ClassVar[str] = "changes-the-model"

    def run(self, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
        report = super().run(spec, subject, progress)
        if getattr(self, "noise", None) is None:
            self.noise = disturbed(subject.model, 0.1)
        else:
            report = super().run(
                spec, StudiedModel(subject.name, self.noise, subject.tokenizer, "0" * 64, "0" * 64), progress
            )
        return report


WRONG_EXPERIMENTS: Mapping[type[Experiment[Any]], Sequence[Any]] = {
    IgnoresSeed: [checks.check_another_seed_has_another_report],
    DrawsFreely: [checks.check_same_seed_has_the_same_report],
    DoesNotResume: [checks.check_killed_job_goes_on_where_it_was, checks.check_cancelled_job_says_where_its_report_is],
    NeverFindsCells: [checks.check_killed_job_goes_on_where_it_was],
    TakesOtherCells: [checks.check_cells_of_other_specs_are_not_taken],
    WorksBeforehand: [checks.check_killed_job_goes_on_where_it_was, checks.check_estimate_is_what_a_run_takes],
    StudiesItsOwn: [checks.check_report_follows_from_the_model],
    ReadsTheDigest: [checks.check_report_follows_from_what_the_model_computes],
    ReadsNothing: [checks.check_report_follows_from_the_model],
    GoesOn: [checks.check_cancelled_job_says_where_its_report_is],
    UnderestimatesItself: [checks.check_estimate_is_what_a_run_takes],
    KeepsTheLastModel: [checks.check_same_seed_has_the_same_report],
}
"""Each mutant with the checks that must refuse it."""


class PerplexitySpec(Spec):
    """A text."""

    text: str = Field("kqzwxm kqzwxm kqzwx", min_length=2, max_length=1000, description="The text.")


class Perplexity(Experiment[PerplexitySpec]):
    """How surprised the model is by a text: as small as an experiment can be."""

    In = PerplexitySpec
    mode = "sync"
    route: ClassVar[str] = "perplexity"
    card: ClassVar[Card] = Card(
        name="perplexity",
        task="probe",
        licence="Apache-2.0",
        summary="Says how surprised a model is by a text.",
        paper=Paper(title="A Mathematical Theory of Communication", venue="BSTJ", year=1948),
        notes=(NO_GRAPH,),
        example={"lm": EXAMPLE_LM, "seed": 0},
    )

    def cost(self, spec: PerplexitySpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(subject.encode(spec.text)))

    @torch.no_grad()
    def run(self, spec: PerplexitySpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = subject.tensor([subject.encode(spec.text)])
        chances = subject.model(ids)[0, :-1].float().log_softmax(-1)
        return Report(
            title="Perplexity", scalars={"nats": Scalar(value=float(-chances.gather(1, ids[0, 1:, None]).mean()))}
        )


RIGHT_EXPERIMENTS: Sequence[type[Experiment[Any]]] = (Perplexity,)
"""New plug-ins that no check may refuse."""
