"""Model host: the transport-free core of a service. It loads Servables and runs requests and tensors on them.

REST, gRPC and jobs call it; it depends on none of them.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel

from fovea.api.tensors import TensorSpec
from fovea.errors import FoveaError, InvalidOption, QueueFull, TooLarge
from shared import telemetry
from shared.registry import CallContext, Engine, Servable
from shared.rpc.oip import InferAnswer, InferCall, build_answer, check_outputs
from shared.rpc.tensors import require_finite
from shared.serving import servable_schema
from shared.serving.batching import Batcher, Work
from shared.serving.catalog import Catalog, ModelSlot
from shared.serving.device_placement import free_gpu_memory, load_context
from shared.serving.http.errors import to_safe_error
from shared.serving.memory_guard import read_resident_bytes
from shared.serving.oip import tensors
from shared.serving.open_streams import OpenStreams
from shared.serving.side_work import SideWork
from shared.serving.watched_work import WatchedWork
from shared.settings import Settings
from shared.telemetry.device_loss import LOSSES

_RETRY_S = 0.05
"""Seconds until a request is tried again when other calls fill the model's queue."""


@dataclass(frozen=True, slots=True)
class _TensorKey:
    """Batch key of tensors: their signature, and the engine that runs them."""

    signature: Hashable
    engine: Engine = field(compare=False)


class Host(Catalog):
    """Loads the Servables of one service and runs their calls off the event loop, micro-batched and bounded."""

    def __init__(self, service: str, servables: Mapping[str, type[Servable[Any, Any]]], settings: Settings) -> None:
        super().__init__(service, servables, settings)
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._woken: dict[str, None] = {}  # the longest unused first
        self.work = WatchedWork()
        self.aside = SideWork(service, settings.max_queue_size, self.work)
        self._streams = OpenStreams(settings.max_queue_size)
        self._loaded = asyncio.Event()

    async def start(self) -> None:
        """Load and warm up all Servables at once; one that fails stays listed, not ready, with its reason."""
        waiting = [name for name in self.names() if self.slot(name).state == "waiting"]
        await asyncio.gather(*(self.load(name) for name in waiting))
        self._loaded.set()

    async def wait_until_loaded(self) -> None:
        """Return once all models are loaded, or have failed to."""
        await self._loaded.wait()

    async def stop(self) -> None:
        """Finish running calls, for up to `shutdown_grace_s`, and free the models."""
        grace_s = self.settings.shutdown_grace_s
        await self._streams.finish(grace_s)
        await asyncio.gather(self.aside.close(grace_s), *(self._release(slot, grace_s) for slot in self.slots))

    async def load(self, name: str) -> None:
        """Load one model, if it is not loaded; a failure is logged and becomes its reason."""
        slot = self.slot(name)
        if slot.state == "on_demand":
            await self.wake(name)
        elif slot.state not in {"loading", "ready"}:
            slot.state = "loading"
            await self._load_into(slot, name)

    async def adopt(self, name: str, kind: type[Servable[Any, Any]]) -> None:
        """Serve a model that came after the start, or came anew, once it is loaded; one that can't be is left out."""
        slot = ModelSlot(kind, "loading")
        await self._load_into(slot, name)
        if slot.state != "ready":
            return
        before = self._slots.get(name)
        self._slots[name] = slot
        if before is not None:
            await self._release(before, self.settings.shutdown_grace_s)

    async def _load_into(self, slot: ModelSlot, name: str) -> None:
        slot.reason = None
        with telemetry.bind(service=self.service, model=name):
            started = time.monotonic()
            try:
                slot.servable = await asyncio.to_thread(self._load, slot.kind)
            except Exception as error:  # noqa: BLE001  # a model may fail in any way without taking the others along
                slot.state = "failed" if slot.kind.is_installed() else "not_installed"
                safe = to_safe_error(error, f"Loading {name} ({slot.kind.__module__})", loads=True)
                slot.reason = " ".join(filter(None, (safe.detail, safe.hint)))
                telemetry.log().warning("model not loaded", reason=slot.reason)
                return
            work, options = self._work(slot.servable), self.batch_options(slot)
            slot.batcher = Batcher(work, options, service=self.service, model=name, watched=self.work)
            slot.state = "ready"
            telemetry.log().info("model ready", seconds=round(time.monotonic() - started, 2))

    async def unload(self, name: str) -> None:
        """Take one model out of service, after its waiting calls."""
        await self._release(self.slot(name), self.settings.shutdown_grace_s)

    def check_ready(self, name: str, version: str = "") -> None:
        """Check that a model answers requests: it is loaded, or its first one loads it.

        Raises NotFound: no such model or version; NotReady: it does not; the detail says why.
        """
        slot = self.slot(name)
        if slot.state != "on_demand" or version not in {"", slot.card.version}:
            super().find_loaded(name, version)

    async def wake(self, name: str) -> None:
        """Load a model that its first request loads; return at once where it is loaded, or failed to be."""
        if self.slot(name).state == "on_demand":
            self._begin_waking(name)
        elif name in self._woken:
            self._woken[name] = self._woken.pop(name)
        if (waking := self._waking.get(name)) is not None:
            await asyncio.shield(waking)

    def find_loaded(self, name: str, version: str = "") -> tuple[Servable[Any, Any], Batcher[Any, Any]]:
        if self.slot(name).state == "on_demand":  # of a route that does not `wake` it: the next try finds it loaded
            with contextlib.suppress(RuntimeError):  # no loop runs here
                self._begin_waking(name)
        return super().find_loaded(name, version)

    def _begin_waking(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        if name not in self._waking:
            self._waking[name] = loop.create_task(self._wake(name))
            self._waking[name].add_done_callback(lambda _: self._waking.pop(name))

    async def _wake(self, name: str) -> None:
        await self._load_into(self.slot(name), name)  # its state stays, so that the service counts as ready meanwhile
        limit, others = self.settings.model_memory_bytes, tuple(self._woken)
        self._woken[name] = None
        for other in others:
            if not limit or read_resident_bytes() <= limit:
                return
            slot = self.slot(other)
            if slot.batcher is not None and not slot.batcher.busy:
                del self._woken[other]
                await self._release(slot, 0.0)
                slot.state = "on_demand"

    def _load(self, kind: type[Servable[Any, Any]]) -> Servable[Any, Any]:
        servable = kind.load(load_context(self.settings))
        try:
            _warm_up(servable)
        except BaseException:
            servable.close()
            raise
        return servable

    async def _release(self, slot: ModelSlot, seconds: float) -> None:
        servable, batcher = slot.servable, slot.batcher
        slot.state, slot.servable, slot.batcher = "unloaded", None, None
        if batcher is not None:
            await batcher.close(seconds)
        if servable is not None:
            await asyncio.to_thread(servable.close)
            del servable, batcher
            await asyncio.to_thread(free_gpu_memory)

    @property
    def ready(self) -> bool:
        """Whether every model that should be loaded is."""
        return not self.missing()

    @property
    def settled(self) -> bool:
        return super().settled and not self.find_trouble()

    @property
    def is_loading(self) -> bool:
        """Whether a model waits to be loaded, or is being loaded."""
        return any(slot.state in {"waiting", "loading"} for slot in self.slots)

    def missing(self) -> dict[str, str]:
        trouble = self.find_trouble()
        return super().missing() | ({"watchdog": trouble} if trouble else {})

    def find_trouble(self, lasting_s: float = 0.0) -> str:
        """Parts that have been stuck for so many seconds or more, in a sentence; empty where nothing is stuck."""
        if dead := [slot.kind.card.name for slot in self.slots if slot.batcher is not None and slot.batcher.is_dead]:
            return f"A thread of {', '.join(dead)} has died."
        if LOSSES:
            return f"The GPU answers nothing more to this process: {LOSSES[0]}."
        overdue = self.work.list_overdue(lasting_s)
        return f"{len(overdue)} threads work past their deadline: {', '.join(overdue[:3])}." if overdue else ""

    @property
    def places(self) -> int:
        """Requests that are worked on at once: text models batch continuously, others answer one batch at a time."""
        kinds = [self.servable_type(name) for name in self.names()]
        is_text = any(kind.mode == "stream" or kind.card.task in {"chat", "complete"} for kind in kinds)
        return max(1, self.settings.max_queue_size // 4) if is_text else 1

    @property
    def busy(self) -> int:
        """Calls that wait or run, in batches or aside, and streams that are open."""
        return len(self._streams) + self.aside.busy + sum(slot.batcher.busy for slot in self.slots if slot.batcher)

    def servable(self, name: str | None, task: str | None = None) -> Servable[Any, Any]:
        """A loaded model by name, or the default of a task. Raises as `resolve`, or NotReady; the detail says why."""
        return self.find_loaded(self.resolve(name, task))[0]

    def tensors(self, name: str, version: str = "") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a model as tensors; both empty where tensors make no sense for it.

        Raises NotFound: no such model or version; NotReady: not loaded.
        """
        engine = self.find_loaded(name, version)[0].engine
        return (engine.inputs, engine.outputs) if engine else ((), ())

    async def predict(self, name: str, request: BaseModel, run: CallContext) -> BaseModel:
        """Answer one request, micro-batched with others that are rendered in the same form.

        Raises FoveaError: the model's error for this request, or QueueFull, DeadlineExceeded, Cancelled, NotReady.
        """
        batcher = await self._admit(name, request, run)
        answer: BaseModel = await batcher.submit(request, run, key=run.media)
        return answer

    async def predict_when_free(self, name: str, request: BaseModel, run: CallContext) -> BaseModel:
        """Answer one of many requests of a call as `predict` does, but wait where others fill the model's queue.

        Raises FoveaError: the model's error for this request, or DeadlineExceeded, Cancelled, NotReady.
        """
        batcher = await self._admit(name, request, run)
        while True:
            try:
                answer: BaseModel = await batcher.submit(request, run, key=run.media)
            except QueueFull:
                run.check()
                await asyncio.sleep(_RETRY_S)
            else:
                return answer

    async def _admit(self, name: str, request: BaseModel, run: CallContext) -> Batcher[BaseModel, Any]:
        """The batcher of a model that is awake; the request's pictures are counted."""
        await self.wake(name)
        _, batcher = self.find_loaded(name)
        if pictures := servable_schema.count_pictures(request):
            run.consume(pictures=pictures)
        return batcher

    async def infer(
        self, name: str, feeds: Mapping[str, np.ndarray], run: CallContext, version: str = ""
    ) -> dict[str, np.ndarray]:
        """Run tensors through a model's engine, micro-batched with others of the same shape.

        Raises InvalidOption: they are not what `tensors(name)` states; Malformed: one holds NaN or infinite values, and
        the settings refuse that; TooLarge: more rows than the model's batch limit. `field` names the tensor.
        """
        await self.wake(name)
        servable, batcher = self.find_loaded(name, version)
        engine = servable.engine
        if engine is None:
            task = servable.card.task
            raise InvalidOption(f"The model {name!r} takes no tensors.", hint=f"Use POST /v1/{task}.", field="model")
        tensors.check_feeds(feeds, engine.inputs)
        if self.settings.refuse_non_finite:
            require_finite(feeds)
        rows, limit = tensors.count_rows(feeds), servable.card.limits.max_batch
        if limit is not None and rows > limit:
            raise TooLarge(f"The batch has {rows} rows; {name} takes at most {limit}.", field="shape")
        signature = tensors.signature(feeds) if tensors.is_batchable(engine) else object()
        outputs: dict[str, np.ndarray] = await batcher.submit(feeds, run, key=_TensorKey(signature, engine), rows=rows)
        return outputs

    async def answer(self, call: InferCall, run: CallContext) -> InferAnswer:
        """Answer an inference call, within its own timeout where that is shorter. Raises as `infer`, and Malformed."""
        servable, _ = self.find_loaded(call.model, call.version)
        if servable.engine is not None:
            check_outputs(call, [spec.name for spec in servable.engine.outputs])
        if call.timeout_s is not None:
            run.deadline = min(run.deadline or math.inf, time.monotonic() + call.timeout_s)
        results = await self.infer(call.model, call.feeds, run, call.version)
        return build_answer(call, results, call.version or servable.card.version)

    async def stream(self, name: str, request: BaseModel, run: CallContext) -> AsyncGenerator[BaseModel, None]:
        """Answer one request piece by piece; closing the iterator cancels the run.

        Raises QueueFull: the limit of open streams is reached.
        """
        servable, _ = self.find_loaded(name)
        events = self._streams.read(self.service, name, lambda: servable.stream(request, run), run)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def _work(self, servable: Servable[Any, Any]) -> Work[Any, Any]:
        """The function that runs a batch: whole requests, or tensors of one signature."""
        duration = telemetry.LATENCY.labels(self.service, servable.card.name, "run")

        def work(key: Hashable, items: Sequence[Any], run: CallContext) -> Sequence[Any]:
            if not isinstance(key, _TensorKey):
                return servable.predict(items, run)
            with duration.time():
                return _infer(key.engine, items)

        return work


def _infer(engine: Engine, items: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    if len(items) == 1:
        return [engine.run(items[0])]
    return tensors.split_rows(engine.run(tensors.join_rows(items)), [tensors.count_rows(feeds) for feeds in items])


def _warm_up(servable: Servable[Any, Any]) -> None:
    """Send the example through once, so that the first caller does not pay for lazy set-up."""
    run, request = CallContext(), servable.example()
    if servable.mode == "sync":
        (answer,) = servable.predict([request], run)
        if isinstance(answer, FoveaError):
            raise answer
        if not isinstance(answer, servable.Out):
            raise TypeError(f"predict answered with a {type(answer).__name__}, not a {servable.Out.__name__}")
    elif servable.mode == "stream":
        asyncio.run(_read_first(servable.stream(request, run)))


async def _read_first(events: AsyncGenerator[BaseModel, None]) -> None:
    async with contextlib.aclosing(events):
        await anext(events, None)
