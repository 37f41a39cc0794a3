"""The judge contract: pairs of query and passage in, one verdict each out, several pairs at a time.

A subclass says how one pair becomes a verdict. A judge stores nothing of a request.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Generic, Self

from typing_extensions import TypeVar

from fovea.errors import FoveaError, InvalidOption, NotFound
from services.relevance_judge.chat_client import ChatClient, Message, PromptTooLong
from services.relevance_judge.metrics.calibration import Calibration
from services.relevance_judge.prompt_template import RenderedPrompt, Template, get_template
from services.relevance_judge.schemas import UNCALIBRATED, JudgeIn, JudgeOut, Pair, Verdict
from services.relevance_judge.storage.versioned_store import VersionedStore
from shared.registry import CallContext, LoadContext, Paper, Servable
from shared.registry.servable import Mode
from shared.storage import ObjectStore

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

MAX_CONCURRENT_PAIRS = 8
MIN_PASSAGE_CHARS = 200
"""Characters below which a passage is not cut further to make it fit."""

Request = TypeVar("Request", bound=JudgeIn, default=JudgeIn)
Reply = TypeVar("Reply")


class Judge(Servable[Request, JudgeOut], Generic[Request]):
    """Judges pairs with language models behind one endpoint.

    Class attributes:
        default: Template used when the request names none.
        kinds: Kinds of templates that it can read.
        asks_model: Whether it asks the language model; one that does not needs no endpoint.
    """

    In: ClassVar[type[JudgeIn]] = JudgeIn
    Out: ClassVar[type[JudgeOut]] = JudgeOut
    mode: ClassVar[Mode] = "job"  # long, and no endpoint needs to be there when it loads
    default: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    asks_model: ClassVar[bool] = True

    def __init__(self, client: ChatClient, objects: ObjectStore | None = None) -> None:
        """Ask through this client; `objects` holds the calibrations that a request may name."""
        self.client, self.objects = client, objects

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        url = context.options.get("judge_base_url", "http://127.0.0.1:8080")
        return cls(ChatClient(url, key=context.options.get("judge_api_key")), context.objects)

    def predict(self, batch: Sequence[Request], run: CallContext) -> list[JudgeOut | FoveaError]:
        count = sum(len(request.pairs) for request in batch)
        with ThreadPoolExecutor(min(MAX_CONCURRENT_PAIRS, count), thread_name_prefix="judge") as pool:
            submitted = [self._submit(request, run, pool) for request in batch]
            return [self._collect(request, tasks, run) for request, tasks in zip(batch, submitted, strict=True)]

    def close(self) -> None:
        self.client.close()

    @abstractmethod
    def verdict(self, pair: Pair, request: Request, run: CallContext) -> Verdict:
        """Judge one pair."""

    def select_template(self, name: str | None) -> Template:
        """The template of a request; `NotFound` if there is none, `InvalidOption` if this judge can't read it."""
        found = get_template(name or self.default)
        if found.kind not in self.kinds:
            detail = f"The template {found.id} is for {found.kind}; {self.card.name} reads {' and '.join(self.kinds)}."
            raise InvalidOption(detail, field="template")
        return found

    def list_template_ids(self, request: Request) -> tuple[str, ...]:
        """Templates (`id@digest`) and embedders that decide on verdicts; `FoveaError`: no such template."""
        return (self.select_template(request.template).pinned_id,)

    def resolve_calibrations(self, request: Request, tenant: str) -> Request:
        """The request with the calibration itself where it only names one of the tenant's; `NotFound` without it."""
        return request.model_copy(update={"calibration": self.load_calibration(request.calibration, tenant)})

    def load_calibration(self, calibration: Calibration | str | None, tenant: str) -> Calibration | None:
        """A calibration; read from the tenant's store where it is only named; `NotFound` without it."""
        if not isinstance(calibration, str):
            return calibration
        if self.objects is None:
            raise NotFound(f"There is no calibration {calibration!r}: none are stored here.", field="calibration")
        return read_calibration(open_calibrations(self.objects, tenant), calibration)

    def judge_pair(self, pair: Pair, request: Request, run: CallContext) -> Verdict:
        """The verdict on one pair, imputed where the request asks for it, with price and latency."""
        run.check()
        started = time.perf_counter()
        found = self.verdict(pair, request, run)
        more: dict[str, Any] = {"latency_ms": round((time.perf_counter() - started) * 1000, 2)}
        if request.price is not None:
            more["cost"] = found.tokens * request.price / 1e6
        if not found.valid and request.impute is not None:
            more |= {"grade": request.impute, "flags": [*found.flags, "imputed"]}
        return found.model_copy(update=more)

    def _submit(
        self, request: Request, run: CallContext, pool: ThreadPoolExecutor
    ) -> list[Future[Verdict]] | FoveaError:
        """Start all pairs of a request; those of all requests share the threads."""
        try:
            resolved = self.resolve_calibrations(request, run.tenant)
        except FoveaError as error:
            return error
        return [pool.submit(self.judge_pair, pair, resolved, run) for pair in resolved.pairs]

    def _collect(
        self, request: Request, tasks: list[Future[Verdict]] | FoveaError, run: CallContext
    ) -> JudgeOut | FoveaError:
        if isinstance(tasks, FoveaError):
            return tasks
        results = []
        try:
            for done, task in enumerate(tasks, 1):
                results.append(task.result())
                run.progress(done / len(tasks), f"{done} of {len(tasks)} pairs")
        except FoveaError as error:
            for task in tasks:
                task.cancel()
            return error
        calibration = self.load_calibration(request.calibration, run.tenant)
        return JudgeOut(
            model=self.card.name,
            results=results,
            invalid=sum(not one.valid and one.reason != UNCALIBRATED for one in results),
            uncalibrated=sum(one.reason == UNCALIBRATED for one in results),
            imputed=sum("imputed" in one.flags for one in results),
            notes=list(calibration.warnings) if calibration else [],
        )


def build_messages(rendered: RenderedPrompt) -> list[Message]:
    """The conversation up to the model's first answer."""
    system: list[Message] = [{"role": "system", "content": rendered.system}] if rendered.system else []
    return [*system, {"role": "user", "content": rendered.turns[0]}]


def fit_passage(passage: str, max_chars: int, ask: Callable[[str], Reply]) -> tuple[Reply, list[str]]:
    """Ask with a passage that is cut at its end until the prompt fits the model's window; with the flag `cut` then.

    Raises TooLong if even its beginning does not fit.
    """
    text = passage[:max_chars]
    while True:
        try:
            return ask(text), ["cut"] if len(text) < len(passage) else []
        except PromptTooLong:
            if len(text) <= MIN_PASSAGE_CHARS:
                raise
            text = text[: max(len(text) // 2, MIN_PASSAGE_CHARS)]


def apply_calibration(signal: float, request: JudgeIn, template: str, llm: str) -> dict[str, Any]:
    """Fields of a verdict that a signal decides: its grade by the request's loaded calibration, or that there is none.

    Raises InvalidOption if the calibration was made for another model or template (`id@digest`).
    """
    calibration = request.calibration
    if not isinstance(calibration, Calibration):
        return {"signal": signal, "grade": None, "valid": False, "reason": UNCALIBRATED, "flags": [UNCALIBRATED]}
    for what, owner, ours in (("template", calibration.template, template), ("model", calibration.model, llm)):
        if owner is not None and owner != ours:
            detail = f"The calibration belongs to the {what} {owner}, not to {ours}."
            raise InvalidOption(detail, hint="Fit one for this judge.", field="calibration")
    facts = {"signal": signal, "grade": calibration.grade(signal), "valid": True, "flags": []}
    return {**facts, "calibration": calibration.reference}


def open_calibrations(objects: ObjectStore, tenant: str) -> VersionedStore:
    """The calibrations of a tenant."""
    return VersionedStore(objects.of_tenant(tenant).under("calibrations"), "calibration")


def read_calibration(store: VersionedStore, name: str) -> Calibration:
    """A stored calibration, by `name` or `name@version`; `NotFound` without it."""
    plain, version, stored = store.get(name)
    return Calibration.model_validate({**stored, "name": plain, "version": version})
