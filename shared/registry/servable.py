"""Servable contract: a Card, typed In and Out, and three verbs (load, predict, stream).

A Servable is domain code without HTTP, queues or metrics backends. The platform batches requests, runs them off the
event loop and turns errors into answers.
"""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from pydantic import BaseModel

from fovea.api.tensors import TensorSpec
from fovea.errors import Cancelled, DeadlineExceeded, FoveaError, PermissionDenied
from shared.registry.card import Card
from shared.storage import ObjectStore

Mode = Literal["sync", "stream", "job"]

Request = TypeVar("Request", bound=BaseModel)
Answer = TypeVar("Answer", bound=BaseModel)


class Engine(Protocol):
    """Runs arrays → arrays. Implementations are in `shared.engines`; the first axis of every tensor is the batch.

    `run` may be called from several threads at once.

    Attributes:
        reason: Why this engine runs the network and not another, in a sentence or more; empty where nobody chose.
    """

    name: str
    reason: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs for `feeds` (input name → array); the caller has checked names, dtypes and shapes."""

    def close(self) -> None:
        """Free what the engine holds."""


@dataclass(frozen=True, slots=True)
class LoadContext:
    """Context of a load: device, engine, folders and options; domain code never reads the environment.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        engine: Requested engine; `auto` lets the Servable choose the fastest that is there.
        cache: Folder for derived artefacts, named by digest (exported graphs, dequantised weights).
        weights: Folder of imported checkpoints, by model name; they win over what came with the package.
        objects: Users' data, shared by all processes; None where nothing outlives this one.
        threads: Intra-op threads; 0 means the library's default.
        options: Further settings by name, as text (`device_placement.load_context`), such as `max_pixels`.
        graphs: Folder of exported graphs that came with an image; they win over the cache.
    """

    device: str = "cpu"
    engine: Literal["auto", "torch", "onnx", "tensorrt", "triton"] = "auto"
    cache: Path = Path(".fovea/cache")
    weights: Path = Path(".fovea/weights")
    threads: int = 0
    objects: ObjectStore | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    graphs: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """A further name of a model, under which it answers a tenant otherwise: a LoRA adapter.

    Attributes:
        name: The name in requests.
        created: When it was made, in seconds since 1970.
    """

    name: str
    created: int


class CallContext:
    """Context of a call: its deadline, its cancellation and its progress. Safe to share between threads.

    Long work calls `check()` between steps and `progress()` when there is something to report.

    Attributes:
        deadline: A `time.monotonic()` instant, or None.
        is_stream: Whether the answer is streamed: its deadline counts anew from each piece.
        pause_s: Seconds that may pass between two pieces of a stream.
        ends_at: A `time.monotonic()` instant at which a stream ends, however lively; infinite for none.
        job: The job's id when it runs as one.
        tenant: The caller's tenant; the call stores and reads its data alone.
        scopes: Rights of the caller's key; None without a gateway: everything.
        audit: Facts for the audit log about the call, by name; empty for nothing.
        cache_salt: Whose caches the call may use: calls of another salt never learn what this one sent.
        media: Content type that the answer is rendered in.
        model: Name of the model that answers, for metrics.
        note: The last note of `progress`.
        usage: The call's consumption so far, by name: `pictures`, `cpu_seconds` (`fovea.api.usage`).
        state: State that a route has loaded for the model to continue, if anything.
    """

    def __init__(
        self,
        *,
        deadline: float | None = None,
        report: Callable[[float, str | None], None] | None = None,
        job: str | None = None,
        tenant: str = "local",
    ) -> None:
        self.deadline = deadline
        self.is_stream = False
        self.pause_s = self.ends_at = math.inf
        self.job = job
        self.tenant = tenant
        self.scopes: frozenset[str] | None = None
        self.audit: dict[str, str] = {}
        self.cache_salt = ""
        self.media = "application/json"
        self.model = ""
        self.note: str | None = None
        self.usage: dict[str, float] = {}
        self.state: Any = None
        self._report = report
        self._cancelled = False  # a plain flag: setting it is atomic

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Report how far the work is: `fraction` in 0..1, `note` for people."""
        self.note = note
        if self._report is not None:
            self._report(min(max(fraction, 0.0), 1.0), note)

    def consume(self, **amounts: float) -> None:
        """Add to `usage`."""
        for name, amount in amounts.items():
            self.usage[name] = self.usage.get(name, 0.0) + amount

    def require_scope(self, scope: str, what: str) -> None:
        """Check that the caller's key allows something; `PermissionDenied` if it does not."""
        if self.scopes is not None and scope not in self.scopes:
            detail = f"{what} needs a key with the scope {scope!r}; this one has {', '.join(sorted(self.scopes))}."
            raise PermissionDenied(detail, hint=f"Make one with `fovea keys add TENANT --scope infer --scope {scope}`.")

    def cancel(self) -> None:
        """Ask the work to stop at its next `check()`."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._cancelled

    def extend(self) -> None:
        """Count the deadline of a stream anew, as it has just produced a piece; any other deadline stands."""
        if self.is_stream and self.deadline is not None:
            self.deadline = min(time.monotonic() + self.pause_s, self.ends_at)

    def build_late(self) -> DeadlineExceeded:
        """Build the error for the deadline that has passed."""
        is_total = self.deadline is not None and self.deadline >= self.ends_at
        return DeadlineExceeded.build(is_stream=self.is_stream, is_total=is_total)

    def part(self, index: int, count: int) -> CallContext:
        """The context of one of `count` equal parts of the work: its progress is a share of the whole's."""
        return self if count == 1 else _PartContext(self, index, count)

    def check(self) -> None:
        """Raise Cancelled if the caller went away or cancelled the job, DeadlineExceeded if the deadline has passed."""
        if self._cancelled:
            raise Cancelled("The request was cancelled.")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise self.build_late()


class _PartContext(CallContext):
    """A part of the work of another context: stops when the whole does."""

    def __init__(self, whole: CallContext, index: int, count: int) -> None:
        super().__init__(deadline=whole.deadline, job=whole.job, tenant=whole.tenant)
        self.scopes, self.cache_salt, self.media = whole.scopes, whole.cache_salt, whole.media
        self._whole, self._index, self._count = whole, index, count

    def progress(self, fraction: float, note: str | None = None) -> None:
        self.note = note
        self._whole.progress((self._index + min(max(fraction, 0.0), 1.0)) / self._count, note)

    def cancel(self) -> None:
        self._whole.cancel()

    def extend(self) -> None:
        self._whole.extend()

    @property
    def cancelled(self) -> bool:
        return self._whole.cancelled

    def check(self) -> None:
        self._whole.check()


class Servable(ABC, Generic[Request, Answer]):
    """One model, ready to serve. A subclass in a scanned room with a `card` is all it takes to be discovered.

    Class attributes:
        card: Its facts; an instance may carry a refined copy (digest and metrics of the loaded weights).
        In, Out: Pydantic models; fields of `In` are the request's options, and fields typed `ImageBytes` its pictures.
        mode: `sync` answers at once, `stream` yields events, `job` is long and is offered as a job.
        on_demand: Whether its first request may load it, where the settings allow it.
    """

    card: ClassVar[Card]
    In: ClassVar[type[BaseModel]]
    Out: ClassVar[type[BaseModel]]
    mode: ClassVar[Mode] = "sync"
    on_demand: ClassVar[bool] = False

    engine: Engine | None = None
    """The engine behind `predict`, where tensors in and out make sense: offered as Open Inference v2."""

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the files that come with a package are here."""
        return True

    @classmethod
    @abstractmethod
    def load(cls, context: LoadContext) -> Self:
        """Verify and load the weights (random ones only if the class asks for them), ready to predict."""

    @abstractmethod
    def predict(self, batch: Sequence[Request], run: CallContext) -> list[Answer | FoveaError]:
        """Answer requests, in order; one that fails alone is answered by its error. A batch equals its singles."""

    def stream(self, request: Request, run: CallContext) -> AsyncGenerator[BaseModel, None]:
        """Answer one request piece by piece (mode `stream`), on the event loop: what computes runs elsewhere."""
        raise NotImplementedError

    def render(self, request: Request, answer: Answer, media_type: str) -> bytes | None:
        """The answer as `media_type` (an annotated PNG, a CSV), or None when there is no such form."""
        return None

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """Forms that `render` offers besides JSON, for content negotiation and docs."""
        return ()

    def example(self) -> Request:
        """A small valid request: the Card's example. One that needs pictures adds them, as a `VisionServable` does."""
        return self.In.model_validate(self.card.example)  # type: ignore[return-value]

    def details(self) -> dict[str, Any]:
        """Further facts about this model, shown under `details` of `/v1/models/{id}`."""
        return {}

    def variants(self, tenant: str, name: str | None = None) -> list[ModelVariant]:
        """Further names under which it answers a tenant: all, or the one of that name. May block."""
        return []

    def close(self) -> None:
        """Free what `load` took."""
        if self.engine is not None:
            self.engine.close()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check early that a concrete class carries what the platform needs."""
        super().__init_subclass__(**kwargs)
        stated = {name: str(kind) for base in cls.__mro__ for name, kind in inspect.get_annotations(base).items()}
        owed = [name for name, kind in stated.items() if "ClassVar" in kind and not hasattr(cls, name)]
        if "card" in vars(cls) and owed:
            raise TypeError(f"{cls.__name__} has a card but no {' and no '.join(owed)}")
        for name, one in cls.In.model_fields.items() if "card" in vars(cls) else ():
            if one.annotation is bytes and not one.metadata:
                raise TypeError(f"{cls.__name__}: JSON can't hold {name!r} as bytes; use fovea.api.image.ImageBytes")
