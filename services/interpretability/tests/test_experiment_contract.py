"""What every experiment owes, checked for each one that discovery finds: a new experiment is tested by existing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from services.interpretability.core.experiment import Experiment, Spec
from services.interpretability.core.report import Report
from shared.errors import Cancelled, FoveaError, NotFound
from shared.registry import CallContext, LoadContext, servables

FOUND = servables("interpretability")


@pytest.fixture(params=FOUND, ids=str)
def study(request: pytest.FixtureRequest, place: LoadContext) -> Experiment[Any]:
    found: Experiment[Any] = FOUND[request.param].load(place)
    return found


@dataclass
class Counter:
    """Calls of a model and the tokens that went in."""

    forwards: int = 0
    tokens: int = 0

    def __call__(self, _model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Count one call."""
        self.forwards += 1
        self.tokens += inputs[0].numel()


@pytest.fixture
def counter(study: Experiment[Any]) -> Iterator[Counter]:
    counting = Counter()
    handle = study.load_model(study.example().lm).model.register_forward_pre_hook(counting)
    yield counting
    handle.remove()


def answered(study: Experiment[Any], spec: Spec, run: CallContext | None = None) -> Report:
    (answer,) = study.predict([spec], run or CallContext())
    if isinstance(answer, FoveaError):
        raise answer
    return answer


def again(study: Experiment[Any], tmp_path_factory: pytest.TempPathFactory) -> Experiment[Any]:
    """The same experiment on another fresh machine: no cell is known there."""
    other: Experiment[Any] = type(study).load(LoadContext(cache=tmp_path_factory.mktemp("other"), threads=1))
    return other


def test_every_experiment_is_a_probe_with_a_path_of_its_own():
    assert FOUND
    assert {kind.card.task for kind in FOUND.values()} == {"probe"}
    routes = [kind.route for kind in FOUND.values()]
    assert len(set(routes)) == len(routes)


def test_every_option_is_described_and_bounded_text_is_bounded(study):
    for name, prop in study.In.model_json_schema()["properties"].items():
        assert prop.get("description"), name


def test_spec_is_frozen_and_refuses_unknown_options_by_name(study):
    with pytest.raises(ValidationError, match="frozen"):
        study.example().seed = 3
    with pytest.raises(ValidationError, match="nonsense"):
        study.In.model_validate({**study.card.example, "nonsense": 1})


def test_unknown_language_model_is_refused_with_the_list(study):
    with pytest.raises(NotFound, match=str(study.example().lm)) as caught:
        answered(study, study.example().model_copy(update={"lm": "nobody"}))
    assert caught.value.field == "lm"


def test_dry_run_runs_nothing_and_counts_what_a_run_takes(study, counter):
    told = answered(study, study.example().model_copy(update={"dry_run": True}))
    measured = Counter(counter.forwards, counter.tokens)
    counter.forwards = counter.tokens = 0
    answered(study, study.example())
    assert counter.forwards == told.scalars["forwards"].value
    assert counter.tokens == told.scalars["tokens"].value
    assert measured.forwards <= 2, "only the speed may be measured"


def test_report_carries_its_manifest_and_its_spec(study):
    report = answered(study, study.example())
    assert report.manifest is not None
    assert report.manifest.experiment == study.card.name
    assert len(report.manifest.weights_sha256) == len(report.manifest.code) == 64
    assert study.In.model_validate(report.spec) == study.example()
    assert not report.partial


def test_report_run_again_from_its_manifest_has_the_same_numbers(study, tmp_path_factory):
    first = answered(study, study.example())
    second = answered(again(study, tmp_path_factory), study.In.model_validate(first.spec))
    assert timeless(first) == timeless(second)


def timeless(report: Report) -> dict[str, Any]:
    """A report without what a clock said: when and how long, and a table called `speed`."""
    told = report.model_dump(exclude={"manifest": {"created", "compute_s"}})
    return told | {"tables": [table for table in told["tables"] if table["name"] != "speed"]}


def test_same_request_twice_is_equal_to_the_byte(study):
    first, second = (answered(study, study.example()).model_dump_json() for _ in range(2))
    assert first == second


def test_every_picture_says_how_to_read_it(study):
    report = answered(study, study.example())
    for part in (*report.grids, *report.bars, *report.strips, *report.graphs):
        assert part.caption.endswith(".")
    for grid in report.grids:
        assert len(grid.values) == len(grid.rows.ticks)
        assert all(len(row) == len(grid.columns.ticks) for row in grid.values)
        assert "Largest" in grid.alt


class _StopsAfter(CallContext):
    """A run that somebody cancels after so many cells."""

    def __init__(self, cells: int) -> None:
        super().__init__(report=self._seen)
        self._left = cells

    def _seen(self, _fraction: float, _note: str | None) -> None:
        self._left -= 1
        if self._left <= 0:
            self.cancel()


def test_cancelled_job_goes_on_where_it_stopped(study, counter):
    if study.mode != "job":
        pytest.skip("answers at once")
    spec = study.example()
    told = answered(study, spec.model_copy(update={"dry_run": True})).manifest.report
    counter.forwards = 0
    with pytest.raises(Cancelled, match="kept") as caught:
        answered(study, spec, _StopsAfter(1))
    assert told in (caught.value.hint or ""), "a dry run tells where the report will be"
    before = counter.forwards
    whole = answered(study, spec)
    resumed = counter.forwards - before
    counter.forwards = 0
    assert whole.model_dump_json() == answered(study, spec).model_dump_json()
    assert counter.forwards == 0, "a finished job repeats no forward"
    assert resumed < before + resumed or before == 0
