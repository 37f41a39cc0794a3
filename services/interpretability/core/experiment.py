"""The Experiment contract: a frozen spec in, a Report out; work in cells that resume and can be stopped.

An experiment is one file in `experiments/`: a `Spec` subclass (its fields become form, flags and documentation), a
`cost` and a `run`. It reaches the platform as a Servable of the task `probe`. Knows no web and no queue.

    class Sinks(Experiment[SinksSpec]):
        card = Card(name="attention-sinks", task="probe", …)
        In = SinksSpec
        route = "sinks"                 # POST /v1/probe/sinks, beside POST /v1/probe with model=attention-sinks

        def cost(self, spec, subject): return Cost(forwards=1, tokens=…, cells=1)
        def run(self, spec, subject, progress): return Report(…)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from services.interpretability.core.cell_cache import Ledger
from services.interpretability.core.code_digest import code_digest
from services.interpretability.core.model_registry import TINY, ModelRegistry, shelf_of
from services.interpretability.core.report import Manifest, Report, Scalar, digest
from services.interpretability.core.result_store import Store
from services.interpretability.core.studied_model import Subject
from services.interpretability.rendering import render as rendering_render
from shared.errors import Cancelled, DeadlineExceeded, FoveaError, TooLarge
from shared.registry import CallContext, LoadContext, Servable
from shared.registry.servable import Mode

__all__ = ["NO_GRAPH", "Cost", "Experiment", "NeedsJob", "Progress", "Spec", "code_digest"]

PATIENCE_S = 20.0
"""Longest run, by its estimate, that a caller may wait for with the connection open."""

NO_GRAPH = "A study of another model, not a network of its own, so there is no ONNX graph."
"""The note that every experiment's Card owes."""


class NeedsJob(TooLarge):
    """The run takes longer than a caller should wait; the header asks a gateway to queue it."""

    headers: ClassVar[Mapping[str, str]] = {"x-fovea-wants": "respond-async"}


class Spec(BaseModel):
    """What every experiment can be told. Frozen: a report repeats its spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lm: str | None = Field(
        None,
        max_length=200,
        title="Language model",
        description="Language model to study; left out, the default one.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of everything random; the same seed gives the same report.")
    dry_run: bool = Field(False, description="Only say what it would cost: forwards, tokens, seconds.")


S = TypeVar("S", bound=Spec)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes.

    Attributes:
        forwards: Calls of the decoder.
        tokens: Tokens through it.
        cells: Pieces of work between which the run can be stopped.
        partial: Tokens that go through some of its layers only, as if they went through all.
    """

    forwards: int
    tokens: int
    cells: int = 1
    partial: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.tokens + other.tokens,
            self.cells + other.cells,
            self.partial + other.partial,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.forwards * times, self.tokens * times, self.cells * times, self.partial * times)


class Progress:
    """The cells of one run: computed or taken from the ledger, counted, and stopped between two of them."""

    def __init__(
        self,
        run: CallContext | None = None,
        *,
        cells: int = 1,
        scope: Mapping[str, Any] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Watch over `cells` cells; `scope` is what all of them depend on (weights, code, experiment)."""
        self.seconds = 0.0
        self.begun: str | None = None
        self.stopped = False
        self._run, self._cells, self._done = run or CallContext(), max(cells, 1), 0
        self._scope, self._ledger = dict(scope or {}), ledger

    def cell(self, content: Mapping[str, Any], work: Callable[[], Any], note: str = "") -> Any:
        """One cell's value, as JSON.

        Args:
            content: What it depends on beside the scope, as JSON.
            work: Computes it; its answer must be JSON without NaN (see `report.matrix`).
            note: What it is, for people who watch.

        Raises:
            Cancelled: Somebody asked to stop.
            DeadlineExceeded: Time is up.
        """
        self._run.check()
        value = self._value(content, work)
        self._done += 1
        self._run.progress(self._done / self._cells, f"{self._done} of {self._cells} cells{note and f': {note}'}")
        return value

    def inside(self) -> CallContext:
        """A run for long work inside the current cell: it ends when this one is stopped, and tells how far it is."""
        done, whole = self._done, self._run
        return _Inside(whole, lambda fraction, note: whole.progress((done + fraction) / self._cells, note))

    def each(
        self, items: Iterable[Item], content: Callable[[Item], Mapping[str, Any]], work: Callable[[Item], Any]
    ) -> Iterator[tuple[Item, Any]]:
        """A cell per item, with its value; ends early, with `stopped` set, where the run was stopped."""
        for item in items:
            try:
                value = self.cell(content(item), lambda item=item: work(item))  # type: ignore[misc]  # mypy infers no defaults
            except (Cancelled, DeadlineExceeded):
                self.stopped = True
                return
            yield item, value

    def _value(self, content: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        if self._ledger is None:
            return work()
        entry = self._ledger.entry({**self._scope, "cell": dict(content)}, work)
        self.seconds += entry.seconds
        self.begun = min(filter(None, (self.begun, entry.at)))
        return entry.value


class _Inside(CallContext):
    """A part of a run: whoever stops the whole stops it."""

    def __init__(self, whole: CallContext, report: Callable[[float, str | None], None]) -> None:
        super().__init__(deadline=whole.deadline, report=report, job=whole.job)
        self._whole = whole

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the whole to stop."""
        return self._whole.cancelled

    def check(self) -> None:
        """Stop here if the whole was asked to."""
        self._whole.check()


class Experiment(Servable[S, Report], Generic[S]):
    """A study of a language model.

    Class attributes:
        route: Its own path under `/v1/probe/`.
    """

    Out: ClassVar[type[BaseModel]] = Report
    mode: ClassVar[Mode] = "job"
    route: ClassVar[str]

    def __init__(self, shelf: ModelRegistry, store: Store) -> None:
        self.shelf, self.store = shelf, store

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Ready at once: a language model is loaded when one is first studied."""
        if place.threads:
            torch.set_num_threads(place.threads)
        return cls(shelf_of(place), Store(place.cache / "probe"))

    def subject(self, name: str | None) -> Subject:
        """The model that a spec's `lm` names.

        Raises:
            NotFound: There is none of that name.
            NotReady: Another full-size model is loaded in this process.
        """
        return self.shelf.subject(name)

    @abstractmethod
    def cost(self, spec: S, subject: Subject) -> Cost:
        """What `run` will take, exactly, or at most where a report can end early.

        Raises:
            InvalidOption: The spec does not fit the subject.
        """

    @abstractmethod
    def run(self, spec: S, subject: Subject, progress: Progress) -> Report:
        """Do it. All forwards happen inside `progress.cell`, `progress.each` or, where one is enough, right here.

        Raises:
            FoveaError: The spec does not fit the subject, or the run was stopped where nothing is worth keeping.
        """

    def predict(self, batch: Sequence[S], run: CallContext) -> list[Report | FoveaError]:
        """Reports on requests, one after the other."""
        return [self._answer(spec, run) for spec in batch]

    def render(self, request: S, answer: Report, media_type: str) -> bytes | None:
        """The report as a picture, a page or arrays."""
        return rendering_render.render(answer, media_type)

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """What `render` offers."""
        return rendering_render.MEDIA_TYPES

    def begin(self, spec: S, subject: Subject, run: CallContext | None = None) -> Progress:
        """The progress of one run: with the ledger where the work is long."""
        scope = {"experiment": self.card.name, **_identity(subject)}
        ledger = self.store.ledger if self.mode == "job" else None
        return Progress(run, cells=self.cost(spec, subject).cells, scope=scope, ledger=ledger)

    def finish(self, spec: S, subject: Subject, progress: Progress, report: Report) -> Report:
        """The report with its spec, its manifest and, where it was stopped, the mark of that."""
        facts = spec.model_dump(mode="json")
        manifest = Manifest(
            experiment=self.card.name,
            model=subject.name,
            **_identity(subject),
            device=subject.device,
            seed=spec.seed,
            report=self.key(spec, subject) if self.mode == "job" else "",
            created=progress.begun,
            compute_s=round(progress.seconds, 3) if progress.begun else None,
        )
        partial = report.partial or progress.stopped
        return report.model_copy(update={"spec": facts, "manifest": manifest, "partial": partial})

    def key(self, spec: S, subject: Subject) -> str:
        """Where the report of this spec on this subject is kept; a dry run tells it beforehand."""
        asked = spec.model_dump(mode="json", exclude={"dry_run"})
        return digest({"experiment": self.card.name, "spec": asked, **_identity(subject)})

    def _answer(self, spec: S, run: CallContext) -> Report | FoveaError:
        try:
            run.check()
            subject = self.subject(spec.lm)
            progress = self.begin(spec, subject, run)
            if spec.dry_run:
                return self.finish(spec, subject, progress, self.estimate(spec, subject))
            if self.mode == "job" and run.deadline is not None:
                self._refuse_long(spec, subject)
            report = self.finish(spec, subject, progress, self.run(spec, subject, progress))
            if self.mode == "job":
                self.store.keep(self.key(spec, subject), report)
            if progress.stopped:
                hint = f"What was done so far: GET /v1/probe/reports/{self.key(spec, subject)}. Sent again, it goes on."
                return Cancelled("The run was stopped; its cells are kept.", hint=hint)
        except FoveaError as error:
            return error
        return report

    def _refuse_long(self, spec: S, subject: Subject) -> None:
        """Refuse to let a caller wait for what is long and not known yet; jobs have no deadline and may be."""
        told = self.estimate(spec, subject).scalars.get("seconds")
        if told is not None and (told.value or 0) > PATIENCE_S and not self.store.knows(self.key(spec, subject)):
            least = f"at once there is only what takes {PATIENCE_S:.0f} s at most"
            hint = "Send it with `Prefer: respond-async`, or make it smaller: `dry_run` tells."
            raise NeedsJob(f"This takes about {told.value:,.0f} s; {least}.", hint=hint)

    def estimate(self, spec: S, subject: Subject) -> Report:
        """What a dry run answers."""
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


def _identity(subject: Subject) -> dict[str, str]:
    """What numbers depend on beside the spec."""
    return {
        "weights_sha256": subject.weights_sha256,
        "tokenizer_sha256": subject.tokenizer_sha256,
        "dtype": subject.dtype,
        "code": code_digest(),
    }


EXAMPLE_LM = TINY
"""The model of Cards' examples: there on every machine, and quick."""
