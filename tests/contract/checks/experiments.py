"""The contract of experiments. Each check takes a class and gets fresh machines; it raises AssertionError.

A report follows from its spec, its seed and the model it studies, and from nothing else: not from what was computed
before, not from where a run was stopped. Finished cells are never computed again.
"""

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fovea.errors import Cancelled, FoveaError, NotFound
from services.interpretability.core.experiment import Experiment
from services.interpretability.core.report import Report
from shared.lm.decoder import Decoder
from shared.registry import CallContext, LoadContext
from tests.contract.checks.kinds import applies_to, is_job
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.requests import brief, option_values, options_of, updated
from tests.contract.checks.weights import disturbed, weights_file
from tests.contract.sameness import differences

SEEDS = range(1, 6)
"""Seeds that are tried next to the example's; that a draw comes out the same under all of them is not chance."""

SHARED = 1.25
"""Most calls of an interrupted run and its continuation together, as a share of an undisturbed one's."""

DEARER = 1.5
"""Most tokens of another spec whose cells are compared, as a multiple of the example's."""

ALIKE = 1e-3
"""Tolerance of numbers that two models of the same function have."""


@dataclass
class Machines:
    """An experiment on fresh machines: each has a folder of its own, and all share the loaded models."""

    kind: type[Experiment[Any]]
    home: Path
    known: dict[str, Any] = field(default_factory=dict)
    """Reports that several checks ask for."""
    _count: int = 0

    def fresh(self) -> Experiment[Any]:
        self._count += 1
        return self.at(self.home / str(self._count))

    def at(self, folder: Path) -> Experiment[Any]:
        """The experiment in a new process on the machine with this folder."""
        found: Experiment[Any] = self.kind.load(LoadContext(cache=folder, weights=self.home / "weights", threads=1))
        return found

    @property
    def example(self) -> Any:
        return brief(self.fresh().example())

    def undisturbed(self) -> Report:
        """The example's report; what its run took is noted, too."""
        if "report" not in self.known:
            study, spec = self.at(self.home / "undisturbed"), self.example
            with _calls_of(study.load_model(spec.lm).model) as calls:
                work = _work(lambda: self.known.update(report=answered(study, spec)))
            self.known |= {"calls": work, "forwards": calls.forwards, "tokens": calls.tokens}
        report: Report = self.known["report"]
        return report

    def used(self) -> Experiment[Any]:
        """The experiment on a machine that has made the example's report."""
        self.undisturbed()
        self._count += 1
        folder = self.home / str(self._count)
        shutil.copytree(self.home / "undisturbed", folder)
        return self.at(folder)


def answered(study: Experiment[Any], spec: BaseModel, run: CallContext | None = None) -> Report:
    (answer,) = study.predict([spec], run or CallContext())
    if isinstance(answer, FoveaError):
        raise answer
    return answer


def timeless(report: Report) -> dict[str, Any]:
    """A report without what a clock said: when and how long, and a table called `speed`."""
    told = report.model_dump(exclude={"manifest": {"created", "compute_s"}})
    return told | {"tables": [table for table in told["tables"] if table["name"] != "speed"]}


def found_in(report: Report) -> dict[str, Any]:
    """Findings: a report without its spec, its manifest and artefacts, which name the model and the seed."""
    return {key: value for key, value in timeless(report).items() if key not in {"spec", "manifest", "artefacts"}}


def check_unknown_model_is_refused_with_the_list(machines: Machines) -> None:
    with pytest.raises(NotFound, match=str(machines.example.lm), check=lambda e: e.field == "lm"):
        answered(machines.fresh(), machines.example.model_copy(update={"lm": "nobody"}))


def check_estimate_is_what_a_run_takes(machines: Machines) -> None:
    study, spec = machines.fresh(), machines.example
    with _calls_of(study.load_model(spec.lm).model) as calls:
        told = answered(study, spec.model_copy(update={"dry_run": True}))
    assert calls.forwards <= 2, "only the speed may be measured"
    machines.undisturbed()
    assert machines.known["forwards"] == told.scalars["forwards"].value
    assert machines.known["tokens"] == told.scalars["tokens"].value
    assert told.scalars["cells"].value >= 1


def check_report_carries_its_manifest_and_its_spec(machines: Machines) -> None:
    report = machines.undisturbed()
    assert report.manifest is not None
    assert report.manifest.experiment == machines.kind.card.name
    assert len(report.manifest.weights_sha256) == len(report.manifest.code) == 64
    assert machines.kind.In.model_validate(report.spec) == machines.example
    assert not report.partial
    assert Report.model_validate_json(report.model_dump_json()) == report


def check_every_picture_says_how_to_read_it(machines: Machines) -> None:
    """Captions, ticks for each row and column, and an alternative text."""
    report = machines.undisturbed()
    for part in (*report.grids, *report.bars, *report.strips, *report.graphs):
        assert part.caption.endswith(".")
    for grid in report.grids:
        assert len(grid.values) == len(grid.rows.ticks)
        assert all(len(row) == len(grid.columns.ticks) for row in grid.values)
        assert "Largest" in grid.alt


def check_same_seed_has_the_same_report(machines: Machines) -> None:
    """On two fresh machines, to the last digit; and twice on one, to the byte."""
    study = machines.fresh()
    first = answered(study, machines.example)
    assert differences(timeless(machines.undisturbed()), timeless(first), tolerance=0) == []
    assert answered(study, machines.example).model_dump_json() == first.model_dump_json()


class _Killed(BaseException):
    """The process is gone."""


def check_another_seed_has_another_report(machines: Machines) -> None:
    """Where numbers are drawn at random, a seed of the spec decides on them."""
    spec, report = machines.example, machines.undisturbed()
    if not _draws(machines.fresh(), spec):
        return
    for name in [name for name in reversed(machines.kind.In.model_fields) if "seed" in name]:  # its own before `seed`
        for seed in SEEDS:
            other = updated(spec, **{name: ([seed + 100] if isinstance(getattr(spec, name), list) else seed)})
            if other is not None and differences(found_in(report), found_in(answered(machines.fresh(), other))):
                return
    raise AssertionError("numbers are drawn at random, but every seed gives the same report")


def _draws(study: Experiment[Any], spec: Any) -> bool:
    """Whether a run makes a generator: what global ones draw without a seed differs from run to run."""
    study.load_model(spec.lm)  # its random weights, before the real ones, are no numbers of the run

    def end(*_: Any, **__: Any) -> None:
        raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        for name in ("random.Random", "numpy.random.default_rng", "torch.Generator", "torch.manual_seed"):
            patch.setattr(name, end)
        try:
            answered(study, spec)
        except _Killed:
            return True
    return False


def check_report_follows_from_the_model(machines: Machines) -> None:
    study, spec = machines.fresh(), machines.example
    subject = study.load_model(spec.lm)
    if study.models.get_loaded(subject.name) is None and weights_file(subject.weights_sha256) is None:
        return  # it trains the models that it studies
    with _studies(study, disturbed(subject.model)):
        other = answered(study, spec)
    assert differences(found_in(machines.undisturbed()), found_in(other), ALIKE), "the report ignores the model"


def check_report_follows_from_what_the_model_computes(machines: Machines) -> None:
    """A model whose neurons stand in another order computes the same, and has the same numbers."""
    study, spec = machines.fresh(), machines.example
    subject = study.load_model(spec.lm)
    if not isinstance(subject.model, Decoder) or not (other := _reordered(subject.model)):
        return  # such neurons are those of decoders with gates
    with _studies(study, other):
        report = answered(study, spec)
    apart = differences(found_in(machines.undisturbed()), found_in(report), ALIKE)
    assert apart == [], f"numbers of the same function differ: {apart[:3]}"


@contextmanager
def _studies(study: Experiment[Any], model: nn.Module) -> Iterator[None]:
    original = study.load_model

    def other(name: str | None) -> Any:
        found = original(name)
        return replace(found, model=model, weights_sha256=hashlib.sha256(repr(id(model)).encode()).hexdigest())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load_model", other)
        yield


def _reordered(model: Decoder) -> nn.Module | None:
    """A copy with the neurons of each MLP turned round; None where it has no such MLP."""
    other = copy.deepcopy(model)
    found = [part for part in other.modules() if all(hasattr(part, f"{n}_proj") for n in ("gate", "up", "down"))]
    for mlp in found:
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            weight = getattr(mlp, name).weight
            weight.data = weight.data.flip(axis).contiguous()
    return other if found else None


class _EndsAfter(CallContext):
    """A run that is stopped once a share of its cells is done: cancelled, or its process killed."""

    def __init__(self, share: float, *, killed: bool = False) -> None:
        super().__init__(report=self._seen)
        self._share, self._killed = share, killed

    def _seen(self, fraction: float, _note: str | None) -> None:
        if fraction < self._share - 1e-9:
            return
        if self._killed:
            raise _Killed
        self.cancel()


@applies_to(is_job)
def check_killed_job_goes_on_where_it_was(machines: Machines) -> None:
    """A new process ends with the report of an undisturbed run, and computes nothing that was finished."""
    spec, undisturbed = machines.example, machines.undisturbed()
    whole = machines.known["calls"]
    cells = int(answered(machines.fresh(), spec.model_copy(update={"dry_run": True})).scalars["cells"].value or 1)
    folder, share = machines.home / "killed", max(cells // 2, 1) / cells

    def be_killed() -> None:
        with pytest.raises(_Killed):
            answered(machines.at(folder), spec, _EndsAfter(share, killed=True))

    begun = _work(be_killed)
    rest = _work(lambda: machines.known.update(resumed=answered(machines.at(folder), spec)))
    assert differences(timeless(undisturbed), timeless(machines.known["resumed"]), tolerance=0) == []
    assert rest < whole or not whole, "it began anew"
    # A recorded run, which cells share, may be made once more.
    assert begun + rest <= SHARED * whole, f"{begun} and {rest} calls instead of {whole}: cells are computed twice"


@applies_to(is_job)
def check_cancelled_job_says_where_its_report_is(machines: Machines) -> None:
    """It stops after the cell in hand; sent again it goes on, and then repeats nothing."""
    study, spec = machines.fresh(), machines.example
    told = answered(study, spec.model_copy(update={"dry_run": True})).manifest
    assert told is not None
    with pytest.raises(Cancelled, match="kept") as caught:
        answered(study, spec, _EndsAfter(0.0))
    assert told.report in (caught.value.hint or ""), "a dry run tells where the report will be"
    assert differences(timeless(machines.undisturbed()), timeless(answered(study, spec)), tolerance=0) == []
    assert _work(lambda: answered(study, spec)) == 0, "a finished job computes something"


@applies_to(is_job)
def check_cells_of_other_specs_are_not_taken(machines: Machines) -> None:
    """On a machine that has computed much, every spec has the report that it has on a fresh one."""
    study, spec, others = machines.used(), machines.example, []
    view = Loaded(study, LoadContext(cache=machines.home))
    for name, _ in options_of(view):
        if name not in {"lm", "dry_run"}:
            made = (updated(spec, **{name: value}) for value in option_values(view, name, spec)[:1])
            others += [one for one in made if one is not None]
    most = _tokens(study, spec) * DEARER
    for other in islice((one for one in others if _tokens(study, one) <= most), 2):
        here, there = (_or_none(one, other) for one in (study, machines.fresh()))
        assert (here is None) == (there is None)
        if here is not None and there is not None:
            apart = differences(timeless(here), timeless(there), tolerance=0)
            assert apart == [], f"a cell of another spec was taken: {apart[:2]}"


def _tokens(study: Experiment[Any], spec: BaseModel) -> float:
    """Tokens that a run takes; 0 where it is refused."""
    told = _or_none(study, spec.model_copy(update={"dry_run": True}))
    return float(told.scalars["tokens"].value or 0) if told else 0.0


def _or_none(study: Experiment[Any], spec: BaseModel) -> Report | None:
    try:
        return answered(study, spec)
    except FoveaError:
        return None


def _work(work: Callable[[], Any]) -> int:
    """Calls of networks, of any and of their parts, while work is done."""
    calls = [0]

    def count(_module: nn.Module, _inputs: Any) -> None:
        calls[0] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        work()
    finally:
        handle.remove()
    return calls[0]


@dataclass
class _Calls:
    forwards: int = 0
    tokens: int = 0

    def __call__(self, _model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.forwards += 1
        self.tokens += inputs[0].numel()


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[_Calls]:
    calls = _Calls()
    handle = model.register_forward_pre_hook(calls)
    try:
        yield calls
    finally:
        handle.remove()


EXPERIMENT_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
"""All of them, in the order in which they stand here."""
