"""The transport-free core of a service: loads its Servables, and answers requests and tensors.

REST, gRPC and jobs sit on it; it knows none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from shared import telemetry
from shared.api.model import ModelEntry
from shared.api.tensors import TensorSpec
from shared.errors import FoveaError, InvalidOption, NotFound, NotReady, QueueFull, TooLarge
from shared.registry import Card, Run, Servable
from shared.serving import tensors
from shared.serving.batching import Batcher, Knobs
from shared.serving.faults import blame
from shared.serving.place import place
from shared.serving.streaming import pump
from shared.settings import Settings

__all__ = ["Host", "State"]

State = Literal["waiting", "loading", "ready", "failed", "unloaded"]

_REQUESTS = "requests"
"""Batch key of whole requests; tensors are keyed by their signature."""


@dataclass(eq=False, slots=True)
class _Slot:
    """One model's place in the host."""

    kind: type[Servable[Any, Any]]
    state: State = "waiting"
    reason: str | None = None
    servable: Servable[Any, Any] | None = None
    batcher: Batcher[Any, Any] | None = None

    @property
    def card(self) -> Card:
        """The Card of the loaded weights, or of the class before they are loaded."""
        return self.kind.card if self.servable is None else self.servable.card


class Host:
    """Loads the Servables of one service and runs their calls off the event loop, micro-batched and bounded."""

    def __init__(self, service: str, servables: Mapping[str, type[Servable[Any, Any]]], settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self._slots = {name: _Slot(kind) for name, kind in servables.items()}
        self._created = int(time.time())
        self._open: list[Run] = []  # of streams
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._pool = ThreadPoolExecutor(settings.queue_max, thread_name_prefix="stream")

    # Life.

    async def start(self) -> None:
        """Load and warm up all Servables at once; one that fails stays listed, not ready, with its reason."""
        await asyncio.gather(*(self.load(name) for name, slot in self._slots.items() if slot.state == "waiting"))

    async def stop(self) -> None:
        """Finish what has begun, for up to `drain_s`, and free the models."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_s):
                await self._quiet.wait()
        for run in self._open:
            run.cancel()
        await asyncio.gather(*(self._free(slot, self.settings.drain_s) for slot in self._slots.values()))
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def load(self, name: str) -> None:
        """Load one model, if it is not loaded; a failure is logged and kept as its reason."""
        slot = self._known(name)
        if slot.state in {"loading", "ready"}:
            return
        slot.state, slot.reason = "loading", None
        with telemetry.bind(service=self.service, model=name):
            begun = time.monotonic()
            try:
                slot.servable = await asyncio.to_thread(self._load, slot.kind)
            except Exception as error:  # noqa: BLE001  # a model may fail in any way without taking the others along
                slot.state, slot.reason = "failed", blame(error, f"Loading {name}").detail
                telemetry.log().warning("model not loaded", reason=slot.reason)
                return
            slot.batcher = Batcher(self._work(slot.servable), self._knobs(slot), service=self.service, model=name)
            slot.state = "ready"
            telemetry.log().info("model ready", seconds=round(time.monotonic() - begun, 2))

    async def unload(self, name: str) -> None:
        """Take one model out of service, after its waiting calls."""
        await self._free(self._known(name), self.settings.drain_s)

    @property
    def ready(self) -> bool:
        """Whether every model that should be loaded is."""
        return not self.missing()

    @property
    def busy(self) -> int:
        """Calls that wait or run, and streams that are open."""
        return len(self._open) + sum(slot.batcher.busy for slot in self._slots.values() if slot.batcher)

    @property
    def settled(self) -> bool:
        """Whether it can answer: nothing is still loading, and not every model failed to."""
        states = {slot.state for slot in self._slots.values()}
        return not states & {"waiting", "loading"} and states != {"failed"}

    def missing(self) -> dict[str, str]:
        """Models that should be loaded and are not, with the reason."""
        return {
            name: slot.reason or slot.state
            for name, slot in self._slots.items()
            if slot.state not in {"ready", "unloaded"}
        }

    def _load(self, kind: type[Servable[Any, Any]]) -> Servable[Any, Any]:
        servable = kind.load(place(self.settings))
        try:
            _warm(servable)
        except BaseException:
            servable.close()
            raise
        return servable

    async def _free(self, slot: _Slot, seconds: float) -> None:
        servable, batcher = slot.servable, slot.batcher
        slot.state, slot.servable, slot.batcher = "unloaded", None, None
        if batcher is not None:
            await batcher.close(seconds)
        if servable is not None:
            await asyncio.to_thread(servable.close)

    # Facts.

    def names(self) -> list[str]:
        """Names of all models, loaded or not."""
        return list(self._slots)

    def tasks(self) -> dict[str, list[str]]:
        """Task → names of the models that do it, the default first."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._slots, key=self._rank):
            found.setdefault(self._slots[name].kind.card.task, []).append(name)
        return found

    def servable(self, name: str | None, task: str | None = None) -> Servable[Any, Any]:
        """A loaded model by name, or the default of a task.

        Raises:
            NotFound: There is none of that name; the detail lists those there are.
            InvalidOption: It is there, but does another task.
            NotReady: It is not loaded yet, or failed to load; the detail says which.
        """
        return self._ready(self.resolve(name, task))[0]

    def resolve(self, name: str | None, task: str | None = None) -> str:
        """The name that `servable(name, task)` stands for, whether loaded or not."""
        fitting = [model for kind, models in self.tasks().items() if task in {None, kind} for model in models]
        if name is None and fitting:
            return fitting[0]
        if name is None or name not in self._slots:
            known = ", ".join(fitting) or "none"
            asked = f"no model {name!r}" if name else f"no model for {task or 'anything'}"
            raise NotFound(f"There is {asked} here; known are: {known}.", field="model")
        if name not in fitting:
            does = self._slots[name].kind.card.task
            hint = f"Choose one of {', '.join(fitting)}." if fitting else None
            raise InvalidOption(f"The model {name!r} does {does}, not {task}.", field="model", hint=hint)
        return name

    def servable_type(self, name: str) -> type[Servable[Any, Any]]:
        """The class of a model, loaded or not."""
        return self._known(name).kind

    def entries(self) -> list[ModelEntry]:
        """One entry per model for `/v1/models`: OpenAI's fields and the Card's facts."""
        return [self._entry(name, slot) for name, slot in self._slots.items()]

    def card(self, name: str) -> dict[str, Any]:
        """Everything that is known about a model: its Card, tensors, limits in force and schemas."""
        slot = self._known(name)
        inputs, outputs = self.tensors(name) if slot.servable else ((), ())
        return {
            **self._entry(name, slot).model_dump(mode="json"),
            **slot.card.model_dump(mode="json"),
            "inputs": [spec.model_dump(mode="json") for spec in inputs],
            "outputs": [spec.model_dump(mode="json") for spec in outputs],
            "limits": self._limits(slot),
            "media_types": ["application/json", *slot.kind.media_types()],
            "schema": slot.kind.In.model_json_schema(),
            "answer_schema": slot.kind.Out.model_json_schema(mode="serialization"),
        }

    def tensors(self, name: str, version: str = "") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a model as tensors; both empty where tensors make no sense for it.

        Raises:
            NotFound: No such model or version.
            NotReady: Not loaded.
        """
        servable, _ = self._ready(name, version)
        return (servable.engine.inputs, servable.engine.outputs) if servable.engine else ((), ())

    # Deeds.

    async def predict(self, name: str, request: BaseModel, run: Run) -> BaseModel:
        """Answer one request, micro-batched with others.

        Raises:
            FoveaError: What the model says of this request, or QueueFull, DeadlineExceeded, Cancelled, NotReady.
        """
        _, batcher = self._ready(name)
        answer: BaseModel = await batcher.submit(request, run, key=_REQUESTS)
        return answer

    async def infer(
        self, name: str, feeds: Mapping[str, np.ndarray], run: Run, version: str = ""
    ) -> dict[str, np.ndarray]:
        """Run tensors through a model's engine, micro-batched with others of the same shape.

        Raises:
            InvalidOption: The tensors are not those that `tensors(name)` states; `field` names the tensor.
            TooLarge: More rows than the model's batch limit.
        """
        servable, batcher = self._ready(name, version)
        engine = servable.engine
        if engine is None:
            task = servable.card.task
            raise InvalidOption(f"The model {name!r} takes no tensors.", hint=f"Use POST /v1/{task}.", field="model")
        tensors.check(feeds, engine.inputs)
        rows, limit = tensors.rows(feeds), servable.card.limits.max_batch
        if limit is not None and rows > limit:
            raise TooLarge(f"The batch has {rows} rows; {name} takes at most {limit}.", field="shape")
        key: Hashable = tensors.signature(feeds) if tensors.batches(engine) else object()
        outputs: dict[str, np.ndarray] = await batcher.submit(feeds, run, key=key, rows=rows)
        return outputs

    async def stream(self, name: str, request: BaseModel, run: Run) -> AsyncGenerator[BaseModel, None]:
        """Answer one request piece by piece; closing the iterator cancels the run.

        Raises:
            QueueFull: As many streams are open as may be.
        """
        servable, _ = self._ready(name)
        if len(self._open) >= self.settings.queue_max:
            raise QueueFull(f"{len(self._open)} streams are open, and no more may be.", retry_after=1)
        self._open.append(run)
        self._quiet.clear()
        try:
            with telemetry.bind(service=self.service, model=name):
                events = pump(lambda: servable.stream(request, run), run, self._pool)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        except Exception as error:
            raise blame(error, f"The model {name}") from error
        finally:
            self._open.remove(run)
            if not self._open:
                self._quiet.set()

    # Inside.

    def _known(self, name: str) -> _Slot:
        return self._slots[self.resolve(name)]

    def _ready(self, name: str, version: str = "") -> tuple[Servable[Any, Any], Batcher[Any, Any]]:
        slot = self._slots.get(name) or self._known(name)
        if version and version != slot.card.version:
            raise NotFound(f"The model {name!r} has version {slot.card.version}, not {version!r}.", field="version")
        if slot.servable is None or slot.batcher is None:
            why = f": {slot.reason}" if slot.reason else ""
            again = 2 if slot.state in {"waiting", "loading"} else None
            raise NotReady(f"The model {name!r} is {_STATES[slot.state]}{why}.", retry_after=again, field="model")
        return slot.servable, slot.batcher

    def _rank(self, name: str) -> tuple[bool, bool, bool]:
        """Order of models within a task: the configured one, then loaded before failed, then real weights first."""
        slot = self._slots[name]
        return (name != self.settings.llm_model, slot.state == "failed", slot.card.weights is None)

    def _entry(self, name: str, slot: _Slot) -> ModelEntry:
        facts = slot.card.model_dump(mode="json", exclude={"name", "task", "example", "limits"})
        return ModelEntry(
            id=name, created=self._created, task=slot.card.task, service=self.service, ready=slot.state == "ready",
            state=slot.state, reason=slot.reason, mode=slot.kind.mode, **facts,
        )  # fmt: skip

    def _limits(self, slot: _Slot) -> dict[str, Any]:
        ours = self.settings
        return {
            **slot.card.limits.model_dump(mode="json"),
            "max_body_bytes": ours.max_body_bytes,
            "max_pixels": ours.max_pixels,
            "max_images": ours.max_images,
            "micro_batch": self._knobs(slot).size,
            "queue": ours.queue_max,
            "deadline_s": ours.deadline_s,
        }

    def _knobs(self, slot: _Slot) -> Knobs:
        ours, mode = self.settings, slot.kind.mode
        size = min(ours.batch_max, slot.card.limits.max_batch or ours.batch_max) if mode == "sync" else 1
        threads = ours.batch_max if mode == "stream" else 1  # a streaming model schedules its calls for itself
        return Knobs(size=size, wait=ours.batch_wait_ms / 1000, depth=ours.queue_max, threads=threads)

    def _work(self, servable: Servable[Any, Any]) -> Any:
        timed = telemetry.LATENCY.labels(self.service, servable.card.name, "run")

        def work(key: Hashable, items: Sequence[Any], run: Run) -> Sequence[Any]:
            if key == _REQUESTS:
                return servable.predict(items, run)
            with timed.time():
                return _infer(servable, items)

        return work


_STATES: Mapping[State, str] = {
    "waiting": "not loaded yet",
    "loading": "still loading",
    "failed": "not available",
    "unloaded": "unloaded",
    "ready": "ready",
}


def _infer(servable: Servable[Any, Any], items: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    assert servable.engine is not None  # noqa: S101  # `Host.infer` lets no tensors in without one
    if len(items) == 1:
        return [servable.engine.run(items[0])]
    return tensors.split(servable.engine.run(tensors.join(items)), [tensors.rows(feeds) for feeds in items])


def _warm(servable: Servable[Any, Any]) -> None:
    """Send the example through once, so that the first caller does not pay for lazy set-up."""
    run, request = Run(), servable.example()
    if servable.mode == "sync":
        (answer,) = servable.predict([request], run)
        if isinstance(answer, FoveaError):
            raise answer
    elif servable.mode == "stream":
        for _ in servable.stream(request, run):
            break
