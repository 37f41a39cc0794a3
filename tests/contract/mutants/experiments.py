"""Experiments that are wrong, and for each the checks that must refuse it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fovea_circuits.experiments.deconstruction import Deconstruction
from services.interpretability.core.experiment import Experiment, Progress
from services.interpretability.core.model_registry import TINY
from services.interpretability.core.report import Report, Scalar
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.head_patterns import HeadPatterns
from services.interpretability.experiments.logit_lens import LogitLens
from shared.registry import CallContext
from tests.contract.checks import experiments as checks
from tests.contract.mutants import wrong


def runs(name: str, base: type[Experiment[Any]], run: Callable[..., Report]) -> type[Experiment[Any]]:
    return wrong(name, base, route=name, run=run)


def _same_seed(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    return HeadPatterns.run(self, spec.model_copy(update={"seed": 0}), subject, progress)


def _with(report: Report, number: float) -> Report:
    return report.model_copy(update={"scalars": report.scalars | {"told": Scalar(value=number)}})


def _draw_freely(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    return _with(LogitLens.run(self, spec, subject, progress), float(np.random.default_rng().random()))


def _read_digest(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    return _with(LogitLens.run(self, spec, subject, progress), int(subject.weights_sha256[:8], 16) / 2**32)


def _study_own(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    with torch.no_grad():
        subject.model(subject.tensor([subject.encode(spec.text)]))
    return LogitLens.run(self, spec, self.models.get(TINY), progress)


def _run_twice(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    LogitLens.run(self, spec, subject, progress)
    return LogitLens.run(self, spec, subject, progress)


def _work_beforehand(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    Deconstruction.run(self, spec, subject, Progress())
    return Deconstruction.run(self, spec, subject, progress)


class _WithoutText(Progress):
    """Cells whose content leaves out the text."""

    def __init__(self, inner: Progress) -> None:
        vars(self).update(vars(inner))

    def cell(self, content: Mapping[str, Any], work: Callable[[], Any], note: str = "") -> Any:
        return super().cell({key: value for key, value in content.items() if key != "ids"}, work, note)


def keeps(name: str, begin: Callable[..., Progress]) -> type[Experiment[Any]]:
    return wrong(name, Deconstruction, route=name, begin=begin)


def _no_cell(self: Any, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
    return Progress(run, cells=self.cost(spec, subject).cells)


def _without_text(self: Any, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
    return _WithoutText(Deconstruction.begin(self, spec, subject, run))


_goes_on = wrong("goes-on", Deconstruction, under=lambda _: CallContext(), route="goes-on")

WRONG_EXPERIMENTS: Mapping[type[Experiment[Any]], Sequence[Any]] = {
    runs("ignores-seed", HeadPatterns, _same_seed): [checks.check_another_seed_has_another_report],
    runs("draws-freely", LogitLens, _draw_freely): [checks.check_same_seed_has_the_same_report],
    keeps("does-not-resume", _no_cell): [
        checks.check_killed_job_goes_on_where_it_was, checks.check_cancelled_job_says_where_its_report_is,
    ],
    keeps("takes-other-cells", _without_text): [checks.check_cells_of_other_specs_are_not_taken],
    runs("works-beforehand", Deconstruction, _work_beforehand): [
        checks.check_killed_job_goes_on_where_it_was, checks.check_estimate_is_what_a_run_takes,
    ],
    runs("studies-its-own", LogitLens, _study_own): [checks.check_report_follows_from_the_model],
    runs("reads-the-digest", LogitLens, _read_digest): [checks.check_report_follows_from_what_the_model_computes],
    _goes_on: [checks.check_cancelled_job_says_where_its_report_is],
    runs("underestimates-itself", LogitLens, _run_twice): [checks.check_estimate_is_what_a_run_takes],
}  # fmt: skip
"""Each mutant with the checks that must refuse it."""
