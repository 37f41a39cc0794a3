"""VisionServable: what every served vision network shares; a family of models says how it reads and answers.

    load → [read each request → infer the batch → postprocess each item] → draw where a picture is asked for

A picture is decoded once and its network runs once: what an answer is drawn from (pixels, masks, boxes) goes with it
where the caller asks for a form other than JSON.

Owns weights, engine, batching, an error per item and the time of each stage. A family (`Segmenter`, `BoxDetector`, …)
writes `artifacts`, `read`, `postprocess` and `draw`; a model file adds a card, the name of its weights and a network.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
from pydantic import BaseModel

from fovea.api.image import Drawable
from fovea.api.tensors import TensorSpec
from fovea.errors import Cancelled, FoveaError, in_field
from shared.export.artifacts import ExportedForms, open_engine_with_card
from shared.registry import CallContext, Card, Engine, LoadContext, Servable
from shared.registry.weights import Weights, find_weights, has_files, read_weights
from shared.telemetry import stage
from shared.vision.decode import DecodedImage, decode
from shared.vision.limits import DEFAULT_BOUNDS, DecodeBounds, decode_bounds
from shared.vision.novelty import InDistributionModel

if TYPE_CHECKING:
    from torch import nn

_UNFAMILIAR = (
    "The picture is unlike those that these weights were trained on: its features are {:.2f} away, where {:.2f} is the "
    "most among pictures of their kind. The findings may mean nothing."
)

_OUTDATED = (
    "Whether the picture is of the trained kind is not known: the weights were made by another version "
    "of Fovea. Train them again, or run `fovea recalibrate`."
)

Request = TypeVar("Request", bound=BaseModel)
Answer = TypeVar("Answer", bound=Drawable)
Item = TypeVar("Item", bound="VisionItem[Any]")


class Stopwatch:
    """Milliseconds by stage of one item."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Begin a stage; the time since the last one belongs to nobody."""
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage, and begin the next one."""
        now = time.perf_counter()
        self.milliseconds[name] = round(self.milliseconds.get(name, 0.0) + 1000 * (now - self._since), 2)
        self._since = now


@dataclass(slots=True, kw_only=True)
class VisionItem(Generic[Request]):
    """One request on its way from `read` to `postprocess`; a family adds fields of its own.

    Attributes:
        request: The request.
        watch: Times its stages.
        inputs: Tensors that the network takes, in the order of the engine's inputs, without the batch axis.
        notes: Notes about the reading, for people.
        context: The call that it belongs to; long post-processing calls its `check` between steps.
        outputs: Tensors that the network gave, in the order of the engine's outputs, without the batch axis.
        pixels: The decoded picture, where it is drawn on later and there is memory to keep it.
    """

    request: Request
    watch: Stopwatch
    inputs: tuple[np.ndarray, ...] = ()
    notes: list[str] = field(default_factory=list)
    context: CallContext = field(default_factory=CallContext, init=False)
    outputs: tuple[np.ndarray, ...] = field(default=(), init=False)
    pixels: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class DataConfig:
    """How the pictures of a set of weights must be prepared, and what its classes are called.

    Attributes:
        side: Side of the network's input, pixels; 0 where it takes any.
        names: Class names by id.
        crop: Share of a picture's shorter side that the network is shown.
        constants: Of post-processing, by name.
        familiar: Features of the pictures that the network knows; None where they were not stored.
    """

    side: int = 0
    names: tuple[str, ...] = ()
    crop: float = 1.0
    constants: Mapping[str, float] = field(default_factory=dict)
    familiar: InDistributionModel | None = None

    def with_facts_of(self, weights: Weights) -> Self:
        """With the constants and the familiar features that came with weights."""
        return replace(self, constants=weights.manifest.constants, familiar=InDistributionModel.read(weights.familiar))

    def warn(self, features: np.ndarray) -> list[str]:
        """Warning about a picture with these features (c,): none where it is of the trained kind."""
        if self.familiar is None:
            return []
        if features.shape != self.familiar.mean.shape:
            return [_OUTDATED]
        distance, most = float(self.familiar.distance(features[None])[0]), self.constants["novelty"]
        return [_UNFAMILIAR.format(distance, most)] if distance > most else []


class VisionServable(Servable[Request, Answer], Generic[Request, Answer, Item]):
    """A vision network behind an engine.

    Class attributes:
        weights: Name of its weights, `<weights>.safetensors` next to its manifest.
        imports: Network whose imported checkpoints it serves under that network's name, where its own name is another.
        folder: Where the weights that come with the package are.
        sample: The picture that `example` sends, where it is not overridden.
        forms: Content types that `render` offers besides JSON.
        one_at_a_time: Whether requests of a batch are read, run and answered one after another, because they are too
            large to be held together, or because a run depends on the run before.
    """

    weights: ClassVar[str] = ""
    imports: ClassVar[str | None] = None
    folder: ClassVar[Path] = Path()
    sample: ClassVar[Path] = Path()
    forms: ClassVar[tuple[str, ...]] = ()
    one_at_a_time: ClassVar[bool] = False
    on_demand: ClassVar[bool] = True
    engine: Engine

    def __init__(
        self, card: Card, engine: Engine, config: DataConfig | None = None, bounds: DecodeBounds = DEFAULT_BOUNDS
    ) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.engine = engine
        self.config = config or DataConfig()
        self.bounds = bounds

    @classmethod
    def is_installed(cls) -> bool:
        return has_files(cls.weights, cls.folder)

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        """Verify the weights and open the engine that `context` wants.

        Raises NotReady: weights are missing or not what their manifest says, or the engine can't run here.
        """
        weights = read_weights(find_weights(cls.weights, cls.folder, context.weights))
        config = cls.data_config(weights).with_facts_of(weights)
        engine, card = open_engine_with_card(cls.card, cls.artifacts(weights, config, context.cache), context)
        described = cls.describe(card, config)
        return cls(described, engine, config, decode_bounds(described, context))

    @classmethod
    def data_config(cls, weights: Weights) -> DataConfig:
        """Side, classes and crop that these weights were trained with."""
        return DataConfig()

    @classmethod
    @abstractmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        """The network and its graph as they are served: tensors, method and shapes."""

    @classmethod
    def all_artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> tuple[ExportedForms, ...]:
        """`artifacts`, and those of variants that a request may ask for."""
        return (cls.artifacts(weights, config, cache),)

    @staticmethod
    def prepare(network: nn.Module) -> nn.Module:
        """The last change to a network before it is exported and served."""
        return network

    @classmethod
    def describe(cls, card: Card, config: DataConfig) -> Card:
        """The Card with what people should know about these weights."""
        return card

    @abstractmethod
    def read(self, request: Request, watch: Stopwatch, run: CallContext) -> Item:
        """Decode and preprocess a request; `run.media` is the form that its answer is rendered in.

        Raises FoveaError: it can't be read; the other requests of the batch are answered all the same.
        """

    @abstractmethod
    def postprocess(self, item: Item) -> Answer:
        """The answer, from the item's outputs."""

    def predict(self, batch: Sequence[Request], run: CallContext) -> list[Answer | FoveaError]:
        if not self.one_at_a_time:
            return self._predict(batch, run)
        return [self._predict_alone(request, run.part(index, len(batch))) for index, request in enumerate(batch)]

    def _predict(self, batch: Sequence[Request], run: CallContext) -> list[Answer | FoveaError]:
        with stage("pre"):
            items = [self._read(request, run) for request in batch]
        self._infer([item for item in items if not isinstance(item, FoveaError)], run)
        with stage("post"):
            return [item if isinstance(item, FoveaError) else self._postprocess(item, run) for item in items]

    def _predict_alone(self, request: Request, run: CallContext) -> Answer | FoveaError:
        try:
            (answer,) = self._predict([request], run)
        except Cancelled:
            raise
        except FoveaError as error:
            return error
        return answer

    def _read(self, request: Request, run: CallContext) -> Item | FoveaError:
        run.check()
        watch = Stopwatch()
        try:
            item = self.read(request, watch, run)
        except FoveaError as error:
            return error
        item.context = run
        watch.lap("preprocess")
        return item

    def _infer(self, items: Sequence[Item], run: CallContext) -> None:
        if not items:
            return
        run.check()
        for item in items:
            item.watch.start()
        self.infer(items, run)
        for item in items:
            item.watch.lap("infer")

    def infer(self, items: Sequence[Item], run: CallContext) -> None:
        """Run the network over all items at once, and leave with each its outputs."""
        names = [spec.name for spec in self.engine.inputs]
        stacked = (np.stack(tensors) for tensors in zip(*(item.inputs for item in items), strict=True))
        for item, outputs in zip(items, self.run_engine(dict(zip(names, stacked, strict=True))), strict=True):
            item.outputs = outputs

    def run_engine(self, feeds: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, ...]]:
        """One run of the engine: for each row of the batch its outputs, in the engine's order."""
        with stage("run"):
            outputs = self.engine.run(feeds)
        return list(zip(*(outputs[spec.name] for spec in self.engine.outputs), strict=True))

    def _postprocess(self, item: Item, run: CallContext) -> Answer | FoveaError:
        run.check()
        item.watch.start()
        try:
            answer = self.postprocess(item)
        except FoveaError as error:
            return error
        if run.media in self.forms:
            answer.attach(item)
        return answer

    def facts(self, item: Item) -> dict[str, Any]:
        """The fields that every answer has; call it last, because it ends the item's last stage."""
        item.watch.lap("post")
        return {
            "model": self.card.name,
            "version": self.card.version,
            "engine": self.engine.name,
            "times": item.watch.milliseconds,
            "notes": item.notes,
        }

    def render(self, request: Request, answer: Answer, media_type: str) -> bytes | None:
        item: Item | None = answer.scene
        return None if item is None or media_type not in self.forms else self.draw(item, answer, media_type)

    def draw(self, item: Item, answer: Answer, media_type: str) -> bytes | None:
        """The answer in one of `forms`, from the item that it was made of."""
        return None

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        return cls.forms

    def example(self) -> Request:
        return cast("Request", self.In.model_validate({"image": self.sample.read_bytes(), **self.card.example}))


def decode_field(data: bytes, bounds: DecodeBounds, name: str = "image") -> DecodedImage:
    """The picture in the field `name` of a request."""
    with in_field(name):
        return decode(data, bounds)


def add_features(forms: ExportedForms, familiar: InDistributionModel | None) -> ExportedForms:
    """The forms with features (n, c) as their last output, where weights know their kind of picture.

    The network's method for both is `<call>_and_features`.
    """
    if familiar is None:
        return forms
    features = TensorSpec(name="features", datatype="FP32", shape=(-1, len(familiar.mean)))
    return replace(
        forms, outputs=(*forms.outputs, features), tag=f"{forms.tag}-features", call=f"{forms.call}_and_features"
    )


def reading_notes(how: str, image: DecodedImage) -> list[str]:
    """Notes of an answer on how its picture was read."""
    return [how, *(["Only the first frame was read."] if image.first_of_many else [])]
