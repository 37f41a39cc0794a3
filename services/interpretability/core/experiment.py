"""Experiment contract: a frozen spec in, a Report out; work in cells that are cached, resumable and cancellable.

An experiment is one file (or folder) in `experiments/`: a `Spec` subclass, whose fields become form, flags and
documentation, a `cost` and a `run`. It joins the platform as a Servable of the task `probe`. Knows no web and no queue.

    class Sinks(Experiment[SinksSpec]):
        card = probe_card("attention-sinks", "Shows …", Paper(…), text="…")
        In = SinksSpec
        route = "sinks"                 # POST /v1/probe/sinks, next to POST /v1/probe with model=attention-sinks

        def cost(self, spec, subject): return Cost(forwards=1, tokens=…, cells=1)
        def run(self, spec, subject, progress): return Report(…)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from fovea.errors import Cancelled, DeadlineExceeded, FoveaError, TooLarge
from services.interpretability.core.model_registry import TINY, ModelRegistry, registry_for
from services.interpretability.core.report import Report, RunManifest, Scalar, code_digest, json_digest
from services.interpretability.core.result_store import CellCache, ResultStore
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.rendering import render as rendering_render
from shared.registry import CallContext, Card, LoadContext, Paper, Servable
from shared.registry.servable import Mode

MAX_WAITED_RUN_S = 20.0
"""Longest run, by its estimate, for which a connection is held open."""

EXAMPLE_LM = TINY
"""The model of Cards' examples: present on every machine, and quick."""

NO_GRAPH = "A study of another model, not a network of its own, so there is no ONNX graph."
"""The note that every experiment's Card must have."""


def probe_card(name: str, summary: str, paper: Paper, *notes: str, **example: Any) -> Card:
    """Return the Card of an experiment that studies a language model; its example is on the tiny one."""
    return Card(
        name=name,
        task="probe",
        licence="Apache-2.0",
        summary=summary,
        paper=paper,
        notes=(*notes, NO_GRAPH),
        example={"lm": EXAMPLE_LM, "seed": 0, **example},
    )


class NeedsJob(TooLarge):
    """The run takes longer than a caller should wait; the header asks a gateway to queue it."""

    headers: ClassVar[Mapping[str, str]] = {"x-fovea-wants": "respond-async"}


class Spec(BaseModel):
    """Options of every experiment. Frozen: a report repeats its spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lm: str | None = Field(
        None, max_length=200, title="Language model", description="Language model to study; left out, the default one."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of everything random; the same seed gives the same report.")
    dry_run: bool = Field(False, description="Only say what it would cost: forwards, tokens, seconds.")


S = TypeVar("S", bound=Spec)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a run.

    Attributes:
        forwards: Calls of the decoder.
        tokens: Tokens through it.
        cells: Units of work between which the run can be stopped.
        partial: Tokens that go through some of its layers only, as if they went through all.
    """

    forwards: int
    tokens: int
    cells: int = 1
    partial: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(one * times for one in astuple(self)))


class Progress:
    """Cell runner of one run: computes cells or reads them from the cache, counts them, stops between two of them.

    Attributes:
        seconds: Compute time of all cells so far, as each was first computed.
        started_at: When the first cell was computed (ISO 8601), or None.
        stopped: Whether `each` ended early.
        tenant: Whose run it is.
    """

    def __init__(
        self,
        run: CallContext | None = None,
        *,
        cells: int = 1,
        scope: Mapping[str, Any] | None = None,
        cache: CellCache | None = None,
    ) -> None:
        """Run `cells` cells that all depend on the facts in `scope`; None as `cache` computes each."""
        self.seconds = 0.0
        self.started_at: str | None = None
        self.stopped = False
        self.tenant = "local" if run is None else run.tenant
        self._run, self._cells, self._done = run or CallContext(), max(cells, 1), 0
        self._scope, self._cache = dict(scope or {}), cache

    def cell(self, content: Mapping[str, Any], work: Callable[[], Any], note: str = "") -> Any:
        """Return the value of one cell, JSON without NaN, that depends on scope and `content`; `note` is its name.

        Raises Cancelled or DeadlineExceeded between two cells.
        """
        self._run.check()
        value = self._get_or_compute(content, work)
        self._done += 1
        self._run.progress(self._done / self._cells, f"{self._done} of {self._cells} cells{note and f': {note}'}")
        return value

    def cell_context(self) -> CallContext:
        """Return a context for long work inside the current cell: cancelled with the run, and reports its share."""
        done, whole = self._done, self._run
        return _CellContext(whole, lambda fraction, note: whole.progress((done + fraction) / self._cells, note))

    def each(
        self, items: Iterable[Item], content: Callable[[Item], Mapping[str, Any]], work: Callable[[Item], Any]
    ) -> Iterator[tuple[Item, Any]]:
        """Yield each item with the value of its cell; ends early, with `stopped` set, when the run is stopped."""
        for item in items:
            try:
                value = self.cell(content(item), lambda item=item: work(item))  # type: ignore[misc]  # mypy infers no defaults
            except (Cancelled, DeadlineExceeded):
                self.stopped = True
                return
            yield item, value

    def _get_or_compute(self, content: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        if self._cache is None:
            return work()
        cell = self._cache.get_or_compute({**self._scope, "cell": dict(content)}, work)
        self.seconds += cell.seconds
        self.started_at = min(filter(None, (self.started_at, cell.at)))
        return cell.value


class _CellContext(CallContext):
    """Context of work inside one cell: whoever cancels the run cancels it."""

    def __init__(self, whole: CallContext, report: Callable[[float, str | None], None]) -> None:
        super().__init__(deadline=whole.deadline, report=report, job=whole.job, tenant=whole.tenant)
        self._whole = whole

    @property
    def cancelled(self) -> bool:
        return self._whole.cancelled

    def check(self) -> None:
        self._whole.check()


class Experiment(Servable[S, Report], Generic[S]):
    """An experiment on a language model.

    Class attributes:
        route: Its own path under `/v1/probe/`.
    """

    Out: ClassVar[type[BaseModel]] = Report
    mode: ClassVar[Mode] = "job"
    route: ClassVar[str]

    def __init__(self, models: ModelRegistry, store: ResultStore) -> None:
        self.models, self.store = models, store

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        if context.threads:
            torch.set_num_threads(context.threads)
        return cls(registry_for(context), ResultStore.of_context(context))

    def load_model(self, name: str | None) -> StudiedModel:
        """Return the model that a spec's `lm` names, loaded on first use; see `ModelRegistry.get` for errors."""
        return self.models.get(name)

    @abstractmethod
    def cost(self, spec: S, subject: StudiedModel) -> Cost:
        """Cost of `run`: exact, or an upper bound if it can end early; `InvalidOption` if the spec does not fit."""

    @abstractmethod
    def run(self, spec: S, subject: StudiedModel, progress: Progress) -> Report:
        """Run the experiment. Forwards happen in `progress.cell`, `progress.each` or, where one is enough, right here.

        Raises FoveaError: the spec does not fit the model, or the run was stopped where nothing is worth keeping.
        """

    def predict(self, batch: Sequence[S], run: CallContext) -> list[Report | FoveaError]:
        return [self._answer(spec, run) for spec in batch]

    def render(self, request: S, answer: Report, media_type: str) -> bytes | None:
        return rendering_render.render(answer, media_type)

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        return tuple(rendering_render.FORMATS.values())

    def begin(self, spec: S, subject: StudiedModel, run: CallContext | None = None) -> Progress:
        """Start the progress of one run; jobs get the cell cache."""
        scope = {"experiment": self.card.name, **self._identity(subject)}
        run = run or CallContext()
        cache = self.store.of_tenant(run.tenant).cells if self.mode == "job" else None
        return Progress(run, cells=self.cost(spec, subject).cells, scope=scope, cache=cache)

    def finish(self, spec: S, subject: StudiedModel, progress: Progress, report: Report) -> Report:
        """Return the report with its spec, its manifest and whether it is partial."""
        manifest = RunManifest(
            experiment=self.card.name,
            model=subject.name,
            **self._identity(subject),
            device=subject.device,
            seed=spec.seed,
            report=self.key(spec, subject) if self.mode == "job" else "",
            created=progress.started_at,
            compute_s=round(progress.seconds, 3) if progress.started_at else None,
        )
        partial = report.partial or progress.stopped
        options = spec.model_dump(mode="json")
        return report.model_copy(update={"spec": options, "manifest": manifest, "partial": partial})

    def key(self, spec: S, subject: StudiedModel) -> str:
        """Key under which the report of this spec and model is stored; a dry run returns it beforehand."""
        options = spec.model_dump(mode="json", exclude={"dry_run"})
        return json_digest({"experiment": self.card.name, "spec": options, **self._identity(subject)})

    def _identity(self, subject: StudiedModel) -> dict[str, str]:
        """Provenance of the numbers besides the spec."""
        return {
            "weights_sha256": subject.weights_sha256,
            "tokenizer_sha256": subject.tokenizer_sha256,
            "dtype": subject.dtype,
            "code": code_digest(type(self).__module__),
        }

    def _answer(self, spec: S, run: CallContext) -> Report | FoveaError:
        try:
            run.check()
            subject = self.load_model(spec.lm)
            progress = self.begin(spec, subject, run)
            if spec.dry_run:
                return self.finish(spec, subject, progress, self.estimate(spec, subject))
            if self.mode == "job" and run.deadline is not None:
                self._require_job_if_long(spec, subject, run.tenant)
            report = self.finish(spec, subject, progress, self.run(spec, subject, progress))
            results = self.store.of_tenant(run.tenant)
            for artefact in report.artefacts:
                results.save_artefact(artefact)
            if self.mode == "job":
                results.save_report(self.key(spec, subject), report)
                results.cells.remove_old()
            if progress.stopped:
                hint = f"Partial results: GET /v1/probe/reports/{self.key(spec, subject)}. Sent again, it goes on."
                return Cancelled("The run was stopped; its cells are kept.", hint=hint)
        except FoveaError as error:
            return error
        return report

    def _require_job_if_long(self, spec: S, subject: StudiedModel, tenant: str) -> None:
        """Refuse to hold a connection for a long run that is not cached; jobs have no deadline and may be long."""
        seconds = self.estimate(spec, subject).scalars["seconds"].value or 0.0
        if seconds > MAX_WAITED_RUN_S and not self.store.of_tenant(tenant).has_report(self.key(spec, subject)):
            detail = f"This takes about {seconds:,.0f} s; at most {MAX_WAITED_RUN_S:.0f} s are answered at once."
            raise NeedsJob(detail, hint="Send it with `Prefer: respond-async`, or make it smaller: `dry_run` tells.")

    def estimate(self, spec: S, subject: StudiedModel) -> Report:
        """Return the report of a dry run."""
        cost = self.cost(spec, subject)
        seconds = round((cost.tokens + cost.partial) * subject.seconds_per_token, 1)
        return Report(
            title=f"What {self.card.name} would take",
            scalars={
                "forwards": Scalar(value=cost.forwards, note="Calls of the decoder."),
                "tokens": Scalar(value=cost.tokens, note="Through the decoder, batches counted in full."),
                "partial_tokens": Scalar(value=cost.partial, note="Through some layers, as if through all."),
                "seconds": Scalar(value=seconds, unit="s", note="At the speed of a short forward on this replica."),
                "cells": Scalar(value=cost.cells, note="It can be stopped, and goes on, between two of them."),
            },
        )
