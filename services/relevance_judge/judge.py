"""What all judges share: pairs in, verdicts out, several at a time, with nothing of a request kept on the judge.

Knows no way of judging; a subclass says how one pair becomes a verdict.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel

from services.relevance_judge.endpoint import Endpoint, Message, TooLong
from services.relevance_judge.template import Rendered, Template, template
from services.relevance_judge.wire import JudgeIn, JudgeOut, Pair, Verdict
from shared.errors import FoveaError, InvalidOption
from shared.registry import Paper, Place, Run, Servable
from shared.registry.servable import Mode

__all__ = ["EXAMPLE", "NO_GRAPH", "PAPER", "Judge", "graded", "named", "opening", "shrinking"]

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

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    @classmethod
    def load(cls, place: Place) -> Self:
        """Ready at once: the language model is reached when a pair is judged."""
        url = place.options.get("judge_base_url", "http://127.0.0.1:8080")
        return cls(Endpoint(url, key=place.options.get("judge_api_key")))

    def predict(self, batch: Sequence[JudgeIn], run: Run) -> list[JudgeOut | FoveaError]:
        """Verdicts on the pairs of each request; a request fails as a whole where its endpoint or options do."""
        return [self._answer(request, run) for request in batch]

    def close(self) -> None:
        """Let the connections go."""
        self.endpoint.close()

    @abstractmethod
    def verdict(self, pair: Pair, request: JudgeIn, run: Run) -> Verdict:
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

    def _answer(self, request: JudgeIn, run: Run) -> JudgeOut | FoveaError:
        try:
            with ThreadPoolExecutor(min(AT_ONCE, len(request.pairs)), thread_name_prefix="judge") as pool:
                tasks = [pool.submit(self._timed, pair, request, run) for pair in request.pairs]
                try:
                    results = [self._done(task.result(), place, request, run) for place, task in enumerate(tasks)]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except FoveaError as error:
            return error
        return JudgeOut(
            model=self.card.name, results=results, invalid=sum(not one.valid for one in results),
            imputed=sum("imputed" in one.flags for one in results),
            notes=list(request.calibration.warnings) if request.calibration else [],
        )  # fmt: skip

    def _timed(self, pair: Pair, request: JudgeIn, run: Run) -> Verdict:
        run.check()
        begun = time.perf_counter()
        found = self.verdict(pair, request, run)
        if not found.valid and request.impute is not None:
            found = found.model_copy(update={"grade": request.impute, "flags": [*found.flags, "imputed"]})
        return found.model_copy(update={"latency_ms": round((time.perf_counter() - begun) * 1000, 2)})

    def _done(self, verdict: Verdict, place: int, request: JudgeIn, run: Run) -> Verdict:
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


def graded(signal: float, request: JudgeIn, chosen: Template, llm: str) -> dict[str, Any]:
    """Fields of a verdict that a signal decides: its grade by the request's calibration, or that there is none.

    Raises:
        InvalidOption: The calibration was made for another model or template.
    """
    cuts = request.calibration
    if cuts is None:
        return {"signal": signal, "grade": None, "valid": False, "reason": "uncalibrated", "flags": ["uncalibrated"]}
    for what, owner, ours in (("template", cuts.template, named(chosen)), ("model", cuts.model, llm)):
        if owner is not None and owner != ours:
            detail = f"The calibration belongs to the {what} {owner}, not to {ours}."
            raise InvalidOption(detail, hint="Fit one for this judge.", field="calibration")
    return {"signal": signal, "grade": cuts.grade(signal), "valid": True, "calibration": cuts.digest, "flags": []}
