"""BoxDetector: serves networks that find boxes, pictures in, boxes out. A model file adds a card and a network.

Knows pictures and the wire type; the networks are in `models`. A network gives predictions (n, 4 + classes, a): centres
and sizes in pixels of its input, then scores. NMS is outside of the graph, where its options are a request's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from fovea.api.boxes import DEFAULT_CONFIDENCE, Crop, DetectIn, Detection, DetectOut
from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from services.detection.boxes import formats
from services.detection.boxes.detections import build_detections, count_by_class, resolve_classes, summarise, to_columns
from services.detection.boxes.drawing import crop_box, draw_boxes
from services.detection.boxes.input_tiles import LetterboxedImage, collect_boxes, letterbox_views
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext, Card
from shared.registry.weights import Weights
from shared.vision.calibration import Platt
from shared.vision.draw import encode
from shared.vision.servable import (
    DataConfig,
    Stopwatch,
    VisionItem,
    VisionServable,
    add_features,
    decode_field,
    reading_notes,
)

if TYPE_CHECKING:
    from torch import nn

TENSOR_NAMES = ("images", "predictions")
"""Input and output of the network as tensors, in the ONNX graph and on the Open Inference route."""

VIEWS_PER_RUN = 8
"""Inputs per run of the engine: more would need memory and save no time."""

_DRAWN = ("image/png", "image/jpeg")
_OF_PICTURE = (*_DRAWN, formats.CROPS)
"""Forms that need the picture's pixels."""


@dataclass(slots=True, kw_only=True)
class _Frame(VisionItem[DetectIn]):
    """A picture's views, ready for the network, ids of the classes asked for, and what was found."""

    classes: list[int] | None
    picture: LetterboxedImage
    warnings: list[str] = field(default_factory=list, init=False)
    found: list[Detection] = field(default_factory=list, init=False)


class BoxDetector(VisionServable[DetectIn, DetectOut, _Frame]):
    """Finds boxes with one network.

    Class attributes:
        side: Longest side that the network sees, pixels, unless the recipe of its weights says another.
        strides: Pixels per cell of the levels; sides of inputs are multiples of the last.
        square: Whether the graph takes squares of `side` only, because it is not exact at other shapes.
        call: Method of the network that gives predictions.
        tag: How the graph is made; raised when that changes.
    """

    In: ClassVar[type[BaseModel]] = DetectIn
    Out: ClassVar[type[BaseModel]] = DetectOut
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"
    sample: ClassVar[Path] = Path(__file__).parents[1] / "models" / "pavement.jpg"
    forms: ClassVar[tuple[str, ...]] = (*_DRAWN, formats.CSV, formats.COCO, formats.YOLO, formats.CROPS)
    side: ClassVar[int] = 640
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    square: ClassVar[bool] = False
    call: ClassVar[str] = "predictions"
    tag: ClassVar[str] = "v1"

    @classmethod
    def data_config(cls, weights: Weights) -> DataConfig:
        manifest = weights.manifest
        count = int(manifest.network.config.get("classes", 0))
        names = tuple(listed.split(",")) if (listed := manifest.data.get("names")) else ()
        names = names if len(names) >= max(count, 1) else tuple(str(index) for index in range(count))
        return DataConfig(side=int(manifest.recipe.get("side", cls.side)), names=names)

    @classmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        side, sides, cells = config.side, (-1, -1), -1
        shapes = [{TENSOR_NAMES[0]: shape} for shape in ((1, 3, side, side), (2, 3, 64, 96), (1, 3, 128, 64))]
        if cls.square:
            sides, cells, shapes = (side, side), sum((side // stride) ** 2 for stride in cls.strides), []
        given = TensorSpec(name=TENSOR_NAMES[0], datatype="FP32", shape=(-1, 3, *sides))
        made = TensorSpec(name=TENSOR_NAMES[1], datatype="FP32", shape=(-1, 4 + len(config.names), cells))
        tag = f"{'square' if cls.square else 'free'}{side}-{cls.tag}"
        forms = ExportedForms(
            weights, cache, (given,), (made,), tag=tag, call=cls.call, prepare=cls.prepare, shapes=shapes
        )
        return add_features(forms, config.familiar)

    @staticmethod
    def prepare(network: nn.Module) -> nn.Module:
        fused: nn.Module = importlib.import_module("services.detection.layers.conv").fuse_batch_norms(network)
        return fused

    @classmethod
    def describe(cls, card: Card, config: DataConfig) -> Card:
        names = config.names
        listed = ", ".join(names[:60]) + (f" and {len(names) - 60} more" if len(names) > 60 else "")
        size = f"Pictures are letterboxed to {config.side} pixels unless `size` says other."
        return card.model_copy(update={"notes": (*card.notes, f"Classes: {listed}.", size)})

    def read(self, request: DetectIn, watch: Stopwatch, run: CallContext) -> _Frame:
        if request.confidence is None:
            request = request.model_copy(update={"confidence": self.details()["confidence"]})
        classes = resolve_classes(request.classes, self.config.names)
        side = self._side(request)
        image = decode_field(request.image, self.bounds)
        is_drawn = run.media in _OF_PICTURE or bool({"crops", "overlay"} & set(request.include))
        watch.lap("decode")
        picture = letterbox_views(image.pixels, request, side, self.strides[-1], square=self.square)
        how = f"Letterboxed to {picture.letterbox.width}×{picture.letterbox.height} (bilinear, grey 114)."
        return _Frame(
            request=request,
            watch=watch,
            notes=reading_notes(how, image),
            classes=classes,
            picture=picture,
            pixels=self.bounds.memory.keep(image.pixels) if is_drawn else None,
        )

    def _side(self, request: DetectIn) -> int:
        """Longest side of the network's input.

        Raises InvalidOption: another than the graph's own was asked for, and it takes no other.
        """
        side = self.config.side
        if self.square and request.size not in {None, side}:
            raise InvalidOption(f"{self.card.name} works at {side} pixels only.", field="size")
        return request.size or side

    def infer(self, items: Sequence[_Frame], run: CallContext) -> None:
        (given,), found = self.engine.inputs, dict[tuple[int, int], tuple[np.ndarray, ...]]()
        for chunk in _chunks(items):
            run.check()
            inputs = np.stack([items[index].picture.views[view].input for index, view in chunk])
            rows = self.run_engine({given.name: _to_input(inputs)})
            found |= dict(zip(chunk, rows, strict=True))
        for index, item in enumerate(items):
            _, *features = found[index, 0]
            item.warnings = [text for row in features for text in self.config.warn(row)]
            item.outputs = tuple(found[index, view][0] for view in range(len(item.picture.views)))

    def postprocess(self, item: _Frame) -> DetectOut:
        request, picture = item.request, item.picture
        most = request.max_detections
        one_more = request.model_copy(update={"max_detections": most + 1})
        rows = collect_boxes(picture, item.outputs, one_more, item.classes, self.sureness)
        if len(rows) > most:
            item.warnings.append(f"There are more than max_detections={most}: only the best are listed and counted.")
        found = item.found = build_detections(rows[:most], self.config.names, request.microns_per_pixel)
        extras = self._extras(item)
        return DetectOut(
            **self.facts(item),
            width=picture.width,
            height=picture.height,
            detections=[] if "columns" in request.include else found,
            counts=count_by_class(found),
            summary=summarise(found),
            slices=len(picture.views) - 1,
            warnings=item.warnings,
            **extras,
        )

    def details(self) -> dict[str, Any]:
        confidence = self.config.constants.get("confidence", DEFAULT_CONFIDENCE)
        return {"confidence": confidence, "classes": list(self.config.names), "defaults": {"size": self.config.side}}

    @property
    def sureness(self) -> Platt:
        """From the network's scores to those that are right as often as they say."""
        constants = self.config.constants
        return Platt(constants.get("slope", 1.0), constants.get("offset", 0.0))

    def _extras(self, item: _Frame) -> dict[str, Any]:
        """Parts of the answer besides the detections."""
        request, found, made = item.request, item.found, dict[str, Any]()
        if "columns" in request.include:
            made["columns"] = to_columns(found)
        if "letterbox" in request.include:
            made["letterbox"] = item.picture.letterbox
        if {"crops", "overlay"} & set(request.include):
            pixels = self._pixels(item)
            if "crops" in request.include:
                made["crops"] = [
                    Crop(index=i, image=encode(crop_box(pixels, each.box))) for i, each in enumerate(found)
                ]
            if "overlay" in request.include:
                made["overlay"] = _drawn(request, pixels, found, "image/jpeg")
        return made

    def draw(self, item: _Frame, answer: DetectOut, media_type: str) -> bytes | None:
        answer = answer.model_copy(update={"detections": item.found})
        if media_type in _DRAWN:
            return _drawn(item.request, self._pixels(item), item.found, media_type)
        if media_type == formats.CROPS:
            return formats.to_crops_zip(answer, self._pixels(item))
        if media_type == formats.COCO:
            return formats.to_coco(answer, self.config.names)
        return formats.to_csv(answer) if media_type == formats.CSV else formats.to_yolo(answer)

    def _pixels(self, item: _Frame) -> np.ndarray:
        """The item's picture; decoded anew where there was no memory to keep it."""
        return item.pixels if item.pixels is not None else decode_field(item.request.image, self.bounds).pixels


def _drawn(request: DetectIn, pixels: np.ndarray, found: Sequence[Detection], media_type: str) -> bytes:
    return encode(draw_boxes(pixels, found, labels=request.labels, stroke=request.stroke), media_type)


def _chunks(items: Sequence[_Frame]) -> Iterator[list[tuple[int, int]]]:
    """Item and view of inputs of one shape, `VIEWS_PER_RUN` at a time."""
    shapes: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, item in enumerate(items):
        for number, view in enumerate(item.picture.views):
            shapes.setdefault(view.input.shape, []).append((index, number))
    for views in shapes.values():
        yield from (views[at : at + VIEWS_PER_RUN] for at in range(0, len(views), VIEWS_PER_RUN))


def _to_input(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, h, w, 3) uint8 as network input (n, 3, h, w) float32 in 0..1."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
