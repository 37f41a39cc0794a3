"""Any network that finds boxes as a Servable: pictures in, boxes out. A model file subclasses it with a card.

Knows pictures, engines and the wire type; the networks are in `models`. A network gives predictions
(n, 4 + classes, a): centres and sizes in pixels of its input, then scores. What overlaps is suppressed outside of the
graph, where its knobs are a request's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel
from torch import nn

from services.detection.boxes import formats
from services.detection.boxes.detections import build_detections, count_by_class, resolve_classes, summarise, to_columns
from services.detection.boxes.drawing import crop_box, draw_boxes
from services.detection.boxes.input_tiles import InputViews, collect_boxes, letterbox_views
from services.detection.layers import fuse_batch_norms
from shared.api.boxes import Crop, DetectIn, Detection, DetectOut
from shared.api.tensors import TensorSpec
from shared.api.timings import Times
from shared.errors import FoveaError, InvalidOption, in_field
from shared.export.artifacts import ExportedForms, open_engine_with_card
from shared.registry import CallContext, Card, Engine, LoadContext, Servable
from shared.registry.weights import Weights, find_weights, read_weights
from shared.telemetry import stage
from shared.vision.decode import DEFAULT_BOUNDS, DecodeBounds, DecodedImage, decode
from shared.vision.decode_limits import decode_bounds
from shared.vision.draw import encode

__all__ = ["TENSOR_NAMES", "BoxDetector"]

TENSOR_NAMES = ("images", "predictions")
"""Input and output of the network as tensors, in the ONNX graph and on the Open Inference route."""

VIEWS_PER_RUN = 8
"""Inputs per run of the engine: more would need memory and save no time."""

_DRAWN = ("image/png", "image/jpeg")


@dataclass(slots=True)
class _Frame:
    """A picture on its way through: its views ready for the network, its pixels already let go."""

    request: DetectIn
    classes: list[int] | None
    seen: InputViews
    notes: list[str]
    times: Times = field(default_factory=Times)
    predictions: dict[int, np.ndarray] = field(default_factory=dict)


class BoxDetector(Servable[DetectIn, DetectOut]):
    """Finds boxes with one network.

    Class attributes:
        weights: Name of its weights, `<weights>.safetensors` beside its manifest.
        folder: Where the weights that come with the package are.
        side: Longest side that the network sees, pixels, unless the recipe of its weights says another.
        strides: Pixels per cell of the levels; sides of inputs are multiples of the last.
        square: Whether the graph takes squares of `side` only, because it is not exact at other shapes.
        call: Method of the network that gives predictions.
        tag: How the graph is made; raised when that changes.
        picture: The example's file in `services.detection.models`.
    """

    In: ClassVar[type[BaseModel]] = DetectIn
    Out: ClassVar[type[BaseModel]] = DetectOut
    weights: ClassVar[str]
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"
    side: ClassVar[int] = 640
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    square: ClassVar[bool] = False
    call: ClassVar[str] = "predictions"
    tag: ClassVar[str] = "v1"
    picture: ClassVar[str] = "pavement.jpg"

    def __init__(
        self, card: Card, engine: Engine, names: Sequence[str], side: int, limits: DecodeBounds = DEFAULT_BOUNDS
    ) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.engine: Engine = engine
        self.names = tuple(names)
        self.pixels = side
        self.bounds = limits

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Verify the weights and open the engine that `place` wants.

        Raises:
            NotReady: Weights are missing or not what their manifest says, or the engine can't run here.
        """
        weights = read_weights(find_weights(cls.weights, cls.folder, place.weights))
        side, names = int(weights.manifest.recipe.get("side", cls.side)), _names(weights)
        artefacts = cls.artefacts(weights, side, len(names), place.cache)
        engine, card = open_engine_with_card(cls.card, artefacts, place)
        return cls(_told(card, names, side), engine, names, side, decode_bounds(cls.card, place))

    @classmethod
    def artefacts(cls, weights: Weights, side: int, classes: int, cache: Path) -> ExportedForms:
        """The network as it is served, up to its predictions; sides are free unless the class says otherwise."""
        sides, cells = (-1, -1), -1
        shapes = [{TENSOR_NAMES[0]: shape} for shape in ((1, 3, side, side), (2, 3, 64, 96), (1, 3, 128, 64))]
        if cls.square:
            sides, cells, shapes = (side, side), sum((side // stride) ** 2 for stride in cls.strides), []
        given = TensorSpec(name=TENSOR_NAMES[0], datatype="FP32", shape=(-1, 3, *sides))
        made = TensorSpec(name=TENSOR_NAMES[1], datatype="FP32", shape=(-1, 4 + classes, cells))
        tag = f"{'square' if cls.square else 'free'}{side}-{cls.tag}"
        return ExportedForms(
            weights, cache, (given,), (made,), tag=tag, call=cls.call, prepare=cls.prepare, shapes=shapes
        )

    @staticmethod
    def prepare(network: nn.Module) -> nn.Module:
        """Last change to the network before it is served."""
        return fuse_batch_norms(network)

    def predict(self, batch: Sequence[DetectIn], run: CallContext) -> list[DetectOut | FoveaError]:
        """Boxes in pictures, in order; one that can't be read is answered by its error."""
        with stage("pre"):
            frames = [self._read(request, run) for request in batch]
        self._search([frame for frame in frames if isinstance(frame, _Frame)], run)
        with stage("post"):
            return [self._answer(frame, run) if isinstance(frame, _Frame) else frame for frame in frames]

    def render(self, request: DetectIn, answer: DetectOut, media_type: str) -> bytes | None:
        """The picture with its boxes, a table, COCO JSON, YOLO text or a zip of crops."""
        if request.include and "columns" in request.include:
            answer = self._again(request)
        if media_type in _DRAWN:
            return encode(self._drawn(request, self._decode(request).pixels, answer.detections), media_type)
        if media_type == formats.CROPS:
            return formats.to_crops_zip(answer, self._decode(request).pixels)
        texts: Mapping[str, Callable[[], bytes]] = {
            formats.CSV: lambda: formats.to_csv(answer),
            formats.COCO: lambda: formats.to_coco(answer, self.names),
            formats.YOLO: lambda: formats.to_yolo(answer),
        }
        return texts[media_type]() if media_type in texts else None

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """Pictures, tables, interchange formats and crops."""
        return (*_DRAWN, formats.CSV, formats.COCO, formats.YOLO, formats.CROPS)

    def example(self) -> DetectIn:
        """A synthetic picture with something to find, and the Card's options."""
        image = resources.files("services.detection.models").joinpath(self.picture).read_bytes()
        return DetectIn(image=image, **self.card.example)

    def _again(self, request: DetectIn) -> DetectOut:
        """The same answer with its list of detections."""
        (answered,) = self.predict([request.model_copy(update={"include": ()})], CallContext())
        if isinstance(answered, FoveaError):
            raise answered
        return answered

    def _decode(self, request: DetectIn) -> DecodedImage:
        with in_field("image"):
            return decode(request.image, self.bounds)

    def _read(self, request: DetectIn, run: CallContext) -> _Frame | FoveaError:
        run.check()
        begun = time.perf_counter()
        try:
            classes = resolve_classes(request.classes, self.names)
            side = self._side(request)
            picture = self._decode(request)
            decoded = time.perf_counter()
            seen = letterbox_views(picture.pixels, request, side, self.strides[-1], square=self.square)
        except FoveaError as error:
            return error
        frame = _Frame(request, classes, seen, self._notes(seen, picture))
        frame.times.decode, frame.times.preprocess = _ms(decoded - begun), _ms(time.perf_counter() - decoded)
        return frame

    def _side(self, request: DetectIn) -> int:
        """Longest side of the network's input.

        Raises:
            InvalidOption: Another than the graph's own was asked for, and it takes no other.
        """
        if self.square and request.size not in {None, self.pixels}:
            raise InvalidOption(f"{self.card.name} works at {self.pixels} pixels only.", field="size")
        return request.size or self.pixels

    def _search(self, frames: Sequence[_Frame], run: CallContext) -> None:
        """Run the engine over all views, those of one shape together, and leave predictions with their frames."""
        begun = time.perf_counter()
        (given,), (wanted_,) = self.engine.inputs, self.engine.outputs
        for chunk in _chunks(frames):
            run.check()
            inputs = np.stack([frame.seen.views[index].input for frame, index in chunk])
            with stage("run"):
                made = self.engine.run({given.name: _scaled(inputs)})[wanted_.name]
            for (frame, index), rows in zip(chunk, made, strict=True):
                frame.predictions[index] = rows
        for frame in frames:
            frame.times.infer = _ms(time.perf_counter() - begun)

    def _answer(self, frame: _Frame, run: CallContext) -> DetectOut:
        run.check()
        begun, request, seen = time.perf_counter(), frame.request, frame.seen
        predictions = [frame.predictions[index] for index in range(len(seen.views))]
        rows = collect_boxes(seen, predictions, request, frame.classes)
        found = build_detections(rows, self.names, request.microns_per_pixel)
        extras = self._extras(request, seen, found)
        frame.times.post = _ms(time.perf_counter() - begun)
        return DetectOut(
            model=self.card.name,
            version=self.card.version,
            engine=self.engine.name,
            width=seen.width,
            height=seen.height,
            detections=[] if "columns" in request.include else found,
            counts=count_by_class(found),
            summary=summarise(found),
            slices=len(seen.views) - 1,
            times=frame.times,
            notes=frame.notes,
            **extras,
        )

    def _extras(self, request: DetectIn, seen: InputViews, found: list[Detection]) -> dict[str, Any]:
        """What the request includes beside the detections."""
        made: dict[str, Any] = {}
        if "columns" in request.include:
            made["columns"] = to_columns(found)
        if "letterbox" in request.include:
            made["letterbox"] = seen.letterbox
        if {"crops", "overlay"} & set(request.include):
            # Decoded anew: holding the pixels of a whole batch until here would cost three bytes for each of them.
            pixels = self._decode(request).pixels
            if "crops" in request.include:
                made["crops"] = [
                    Crop(index=i, image=encode(crop_box(pixels, each.box))) for i, each in enumerate(found)
                ]
            if "overlay" in request.include:
                made["overlay"] = encode(self._drawn(request, pixels, found), "image/jpeg")
        return made

    @staticmethod
    def _drawn(request: DetectIn, pixels: np.ndarray, found: Sequence[Detection]) -> np.ndarray:
        return draw_boxes(pixels, found, labels=request.labels, stroke=request.stroke)

    @staticmethod
    def _notes(seen: InputViews, picture: DecodedImage) -> list[str]:
        how = f"Letterboxed to {seen.letterbox.width}×{seen.letterbox.height} (bilinear, grey 114)."
        return [how, *(["Only the first frame was read."] if picture.first_of_many else [])]


def _chunks(frames: Sequence[_Frame]) -> Iterator[list[tuple[_Frame, int]]]:
    """Views of one shape, `VIEWS_PER_RUN` at a time."""
    shapes: dict[tuple[int, ...], list[tuple[_Frame, int]]] = {}
    for frame in frames:
        for index, view in enumerate(frame.seen.views):
            shapes.setdefault(view.input.shape, []).append((frame, index))
    for views in shapes.values():
        yield from (views[at : at + VIEWS_PER_RUN] for at in range(0, len(views), VIEWS_PER_RUN))


def _scaled(inputs: np.ndarray) -> np.ndarray:
    """Pictures (n, h, w, 3) uint8 as network input (n, 3, h, w) float32 in 0..1."""
    return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _names(weights: Weights) -> tuple[str, ...]:
    """Class names that came with the weights, or their numbers."""
    manifest = weights.manifest
    told = manifest.data.get("names", "")
    count = int(manifest.network.config.get("classes", 0))
    names = tuple(told.split(",")) if told else ()
    return names if len(names) >= max(count, 1) else tuple(str(index) for index in range(count))


def _told(card: Card, names: Sequence[str], side: int) -> Card:
    """The Card with the classes and the size of input that these weights have."""
    listed = ", ".join(names[:60]) + (f" and {len(names) - 60} more" if len(names) > 60 else "")
    notes = (*card.notes, f"Classes: {listed}.", f"Pictures are letterboxed to {side} pixels unless `size` says other.")
    return card.model_copy(update={"notes": notes})


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
