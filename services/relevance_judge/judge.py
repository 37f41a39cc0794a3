"""What all judges share: pairs in, verdicts out, several at a time, with nothing of a request kept on the judge.

Knows no way of judging; a subclass says how one pair becomes a verdict.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel

from services.relevance_judge.chat_client import Endpoint, Message, TooLong
from services.relevance_judge.metrics.calibration import Calibration
from services.relevance_judge.prompt_template import Rendered, Template, template
from services.relevance_judge.schemas import JudgeIn, JudgeOut, Pair, Verdict
from services.relevance_judge.storage.versioned_store import VersionedStore
from shared.errors import FoveaError, InvalidOption, NotFound
from shared.registry import CallContext, LoadContext, Paper, Servable
from shared.registry.servable import Mode

__all__ = ["EXAMPLE", "NO_GRAPH", "PAPER", "Judge", "calibrations", "graded", "named", "opening", "shrinking"]

PAPER = Paper(title="Judging the Judges: A Collection of LLM-Generated Relevance Judgements", venue="SIGIR", year=2025)
NO_GRAPH = "Asks a language model over HTTP and runs no network of its own, so there is no ONNX graph."

EXAMPLE: dict[str, Any] = {
    "seed": 1,
    "pairs": [
        {
            "query": "what causes ocean tides",
            "passage": "The moon's gravity stretches the oceans into two bulges, and as the earth turns beneath them, "
            "coasts see high water about twice a day. The sun adds a smaller effect of the same kind.",
        }
    ],
}

AT_ONCE = 8
SHORTEST = 200
"""Characters below which a passage is not cut further to make it fit."""

Found = TypeVar("Found")


class Judge(Servable[JudgeIn, JudgeOut]):
    """Judges pairs with language models behind one endpoint.

    Class attributes:
        default: Template used when the request names none.
        kinds: Kinds of templates that it can read.
    """

    In: ClassVar[type[BaseModel]] = JudgeIn
    Out: ClassVar[type[BaseModel]] = JudgeOut
    mode: ClassVar[Mode] = "job"  # long, and no endpoint needs to be there when it loads
    default: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]

    def __init__(self, endpoint: Endpoint, calibrations: VersionedStore | None = None) -> None:
        """Ask this endpoint; `calibrations` are those that a request may name."""
        self.endpoint, self.calibrations = endpoint, calibrations

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Ready at once: the language model is reached when a pair is judged."""
        url = place.options.get("judge_base_url", "http://127.0.0.1:8080")
        folder = place.options.get("data_dir")
        shelf = calibrations(Path(folder)) if folder else None
        return cls(Endpoint(url, key=place.options.get("judge_api_key")), shelf)

    def predict(self, batch: Sequence[JudgeIn], run: CallContext) -> list[JudgeOut | FoveaError]:
        """Verdicts on the pairs of each request; a request fails as a whole where its endpoint or options do."""
        count = sum(len(request.pairs) for request in batch)
        with ThreadPoolExecutor(min(AT_ONCE, count), thread_name_prefix="judge") as pool:
            begun = [self._begun(request, run, pool) for request in batch]
            return [self._answer(request, tasks, run) for request, tasks in zip(batch, begun, strict=True)]

    def close(self) -> None:
        """Let the connections go."""
        self.endpoint.close()

    @abstractmethod
    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        """Judge one pair."""

    def chosen(self, name: str | None) -> Template:
        """The template of a request.

        Raises:
            NotFound: No such template.
            InvalidOption: It is one that this judge can't read.
        """
        found = template(name or self.default)
        if found.kind not in self.kinds:
            detail = f"The template {found.id} is for {found.kind}; {self.card.name} reads {' and '.join(self.kinds)}."
            raise InvalidOption(detail, field="template")
        return found

    def names_of(self, request: JudgeIn) -> tuple[str, ...]:
        """The templates that a request is judged with, as `id@digest`.

        Raises:
            FoveaError: One is not known, or this judge can't read it.
        """
        return (named(self.chosen(request.template)),)

    def settled(self, request: JudgeIn) -> JudgeIn:
        """The request with its calibration at hand, where it only names one.

        Raises:
            NotFound: There is no such calibration.
        """
        return request.model_copy(update={"calibration": self.cuts(request.calibration)})

    def cuts(self, given: Calibration | str | None) -> Calibration | None:
        """A calibration, from the shelf where it is only named.

        Raises:
            NotFound: There is no such calibration.
        """
        if not isinstance(given, str):
            return given
        if self.calibrations is None:
            raise NotFound(f"There is no calibration {given!r}: none are kept here.", field="calibration")
        name, version, kept = self.calibrations.get(given)
        return Calibration.model_validate({**kept, "name": name, "version": version})

    def judged(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        """The verdict on one pair as it is handed out: imputed where the request says so, priced and timed."""
        run.check()
        begun = time.perf_counter()
        found = self.verdict(pair, request, run)
        more: dict[str, Any] = {"latency_ms": round((time.perf_counter() - begun) * 1000, 2)}
        if request.price is not None:
            more["cost"] = found.tokens * request.price / 1e6
        if not found.valid and request.impute is not None:
            more |= {"grade": request.impute, "flags": [*found.flags, "imputed"]}
        return found.model_copy(update=more)

    def _begun(
        self, request: JudgeIn, run: CallContext, pool: ThreadPoolExecutor
    ) -> list[Future[Verdict]] | FoveaError:
        """All pairs of a request on their way; those of all requests share the threads."""
        try:
            whole = self.settled(request)
        except FoveaError as error:
            return error
        return [pool.submit(self.judged, pair, whole, run) for pair in whole.pairs]

    def _answer(
        self, request: JudgeIn, tasks: list[Future[Verdict]] | FoveaError, run: CallContext
    ) -> JudgeOut | FoveaError:
        if isinstance(tasks, FoveaError):
            return tasks
        try:
            results = [self._done(task.result(), place, request, run) for place, task in enumerate(tasks)]
        except FoveaError as error:
            for task in tasks:
                task.cancel()
            return error
        cuts = self.cuts(request.calibration)
        return JudgeOut(
            model=self.card.name,
            results=results,
            invalid=sum(not one.valid for one in results),
            imputed=sum("imputed" in one.flags for one in results),
            notes=list(cuts.warnings) if cuts else [],
        )

    def _done(self, verdict: Verdict, place: int, request: JudgeIn, run: CallContext) -> Verdict:
        run.progress((place + 1) / len(request.pairs), f"{place + 1} of {len(request.pairs)} pairs")
        return verdict


def named(chosen: Template) -> str:
    """A template's id and digest, as verdicts carry it."""
    return f"{chosen.id}@{chosen.digest}"


def opening(rendered: Rendered) -> list[Message]:
    """The conversation up to the model's first answer."""
    system: list[Message] = [{"role": "system", "content": rendered.system}] if rendered.system else []
    return [*system, {"role": "user", "content": rendered.turns[0]}]


def shrinking(passage: str, most: int, ask: Callable[[str], Found]) -> tuple[Found, list[str]]:
    """Ask with a passage, cut at its end until it fits the model's window; and the flag `cut` where it was.

    Raises:
        TooLong: Even its beginning does not fit.
    """
    text = passage[:most]
    while True:
        try:
            return ask(text), ["cut"] if len(text) < len(passage) else []
        except TooLong:
            if len(text) <= SHORTEST:
                raise
            text = text[: max(len(text) // 2, SHORTEST)]


def graded(signal: float, request: JudgeIn, templates: str, llm: str) -> dict[str, Any]:
    """Fields of a verdict that a signal decides: its grade by the request's calibration, or that there is none.

    Raises:
        InvalidOption: The calibration was made for another model or template.
    """
    cuts = request.calibration
    if not isinstance(cuts, Calibration):
        return {"signal": signal, "grade": None, "valid": False, "reason": "uncalibrated", "flags": ["uncalibrated"]}
    for what, owner, ours in (("template", cuts.template, templates), ("model", cuts.model, llm)):
        if owner is not None and owner != ours:
            detail = f"The calibration belongs to the {what} {owner}, not to {ours}."
            raise InvalidOption(detail, hint="Fit one for this judge.", field="calibration")
    return {"signal": signal, "grade": cuts.grade(signal), "valid": True, "calibration": cuts.called, "flags": []}


def calibrations(data: Path) -> VersionedStore:
    """The calibrations that a machine keeps under its data folder."""
    return VersionedStore(data / "judge" / "calibrations", "calibration")
