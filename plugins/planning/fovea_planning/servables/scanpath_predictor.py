"""ScanpathPredictor: serves gaze networks, objects and a target in, scanpaths out. A model file adds a card.

Knows object layouts and the wire type; the networks are in `models`, decoding in `gaze.scanpaths`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
from PIL import Image
from pydantic import BaseModel

from fovea.api.boxes import DetectOut
from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from fovea_planning.gaze.metrics import behaviour, multimatch, nss, sequence_score, similarity
from fovea_planning.gaze.object_layout import (
    ObjectLayout,
    crop_objects,
    draw_scanpath,
    layout_from_boxes,
    layout_from_grid,
    render_layout,
)
from fovea_planning.gaze.scanpaths import DecodedScanpath, decode_scanpaths
from fovea_planning.scanpath_schema import Conduct, Fixation, Scanpath, ScanpathIn, ScanpathOut, ScanpathSimilarity
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext, Engine
from shared.registry.weights import Weights
from shared.telemetry import stage
from shared.vision.draw import encode
from shared.vision.servable import DataConfig, Stopwatch, VisionItem, VisionServable, decode_field

if TYPE_CHECKING:
    from torch import nn

    from fovea_planning.models.object_attention import ObjectAttention

MAX_GRID_SIDE = 24
"""Most rows or columns of a shelf that is served; position rows that the weights lack are fitted."""


@dataclass(slots=True, kw_only=True)
class _Search(VisionItem[ScanpathIn]):
    """The objects as a grid, their crops (m, h, w, 3) in 0..1, and what was predicted over them.

    Attributes:
        size: Width and height of the picture, or of the page of crops, pixels.
        labels: Names of the objects, where a detector gave some.
        scanpaths: One, or as many as samples were asked for.
        expected: Probabilities (t, n + 1) at each step of the reference, where there is one.
    """

    objects: ObjectLayout
    crops: np.ndarray
    size: tuple[int, int]
    labels: list[str] | None = None
    scanpaths: list[DecodedScanpath] = field(init=False)
    expected: np.ndarray | None = field(default=None, init=False)

    @property
    def target(self) -> int:
        """Cell of the target."""
        return self.objects.ids.index(self.request.target)


class ScanpathPredictor(VisionServable[ScanpathIn, ScanpathOut, _Search]):
    """Predicts scanpaths with one network, a fixation at a time."""

    In: ClassVar[type[BaseModel]] = ScanpathIn
    Out: ClassVar[type[BaseModel]] = ScanpathOut
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"
    forms: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg")
    one_at_a_time: ClassVar[bool] = True

    @classmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        height, width = weights.manifest.network.config.get("crop", (150, 93))
        given = (
            TensorSpec(name="crops", datatype="FP32", shape=(-1, -1, 3, height, width)),
            TensorSpec(name="cells", datatype="INT64", shape=(-1, -1, 2)),
            TensorSpec(name="target", datatype="INT64", shape=(-1,)),
            TensorSpec(name="fixations", datatype="INT64", shape=(-1, -1, -1)),
        )
        wanted = TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, -1, -1))
        shapes = [
            {"crops": (b, n, 3, height, width), "cells": (b, n, 2), "target": (b,), "fixations": (b, s, t)}
            for b, n, s, t in ((1, 6, 1, 3), (2, 9, 3, 5), (1, 12, 2, 0))
        ]
        return ExportedForms(
            weights, cache, given, (wanted,), tag="v1", call="logits", prepare=cls.prepare, shapes=shapes
        )

    @staticmethod
    def prepare(network: nn.Module) -> nn.Module:
        return cast("ObjectAttention", network).extend(MAX_GRID_SIDE)

    def example(self) -> ScanpathIn:
        colours = [(214, 40, 57), (38, 100, 214), (34, 150, 70), (240, 180, 20), (140, 60, 180)]
        crops = []
        for index in range(27):
            page, file = Image.new("RGB", (32, 48), (232, 228, 220)), io.BytesIO()
            page.paste(colours[index * 7 % 5], (6, 8 + index % 3 * 6, 26, 40))
            page.save(file, "PNG")
            crops.append(file.getvalue())
        return ScanpathIn(crops=tuple(crops), grid=(3, 9), **self.card.example)

    def read(self, request: ScanpathIn, watch: Stopwatch, run: CallContext) -> _Search:
        if (request.image is None) == (not request.crops):
            detail = "Send a picture of the shelf with its objects, or crops with their grid."
            raise InvalidOption(detail, field="image" if request.image is None else "crops")
        if getattr(request, idle := "objects" if request.image is None else "grid") is not None:
            owner = "a picture of the shelf" if idle == "objects" else "crops"
            raise InvalidOption(f"{idle} belongs to {owner}, which was not sent.", hint="Leave it out.", field=idle)
        is_drawn = run.media in self.forms
        if request.image is not None:
            item = self._read_picture(request, watch, is_drawn=is_drawn)
        else:
            item = self._read_crops(request, watch)
        if request.mode == "greedy" and request.samples > 1:
            item.notes.append("mode=greedy gives one path: samples are drawn with mode=sampled.")
        count = len(item.crops)
        for name, ids in (("target", (request.target,)), ("reference", request.reference)):
            if any(not 0 <= index < count for index in ids):
                raise InvalidOption(f"{name} names an object that is not there: ids are 0 to {count - 1}.", field=name)
        if max(item.objects.grid) > MAX_GRID_SIDE:
            rows, columns = item.objects.grid
            detail = f"The shelf has {rows} rows and {columns} columns; {MAX_GRID_SIDE} are served."
            raise InvalidOption(detail, hint="Send the objects of a part of the picture.", field="objects")
        watch.lap("decode")
        return item

    def _read_picture(self, request: ScanpathIn, watch: Stopwatch, *, is_drawn: bool) -> _Search:
        if not request.objects:
            raise InvalidOption("A picture of a shelf needs its objects.", hint="Send boxes.", field="objects")
        pixels, labels = decode_field(request.image or b"", self.bounds).pixels, None
        if isinstance(request.objects, DetectOut):
            labels = [found.label for found in request.objects.detections]
            boxes = tuple(found.box for found in request.objects.detections)
            if not boxes:
                detail = "The answer of the detector lists no object."
                raise InvalidOption(detail, hint="Ask the detector without `include=columns`.", field="objects")
        else:
            boxes = request.objects
        if len(boxes) > MAX_GRID_SIDE**2:  # before their crops fill the memory
            raise InvalidOption(
                f"{len(boxes):,} objects are too many; {MAX_GRID_SIDE**2} are the most.", field="objects"
            )
        crops = crop_objects(pixels, boxes, self._crop_size)
        objects = layout_from_boxes(boxes)
        note = f"{len(boxes)} boxes arranged in {objects.grid[0]} rows and {objects.grid[1]} columns."
        size = (pixels.shape[1], pixels.shape[0])
        return _Search(
            request=request,
            watch=watch,
            notes=[note],
            objects=objects,
            crops=crops,
            size=size,
            labels=labels,
            pixels=self.bounds.memory.keep(pixels) if is_drawn else None,
        )

    def _read_crops(self, request: ScanpathIn, watch: Stopwatch) -> _Search:
        if request.grid is None:
            raise InvalidOption("Crops need their grid.", hint="Send rows and columns, as [3, 9].", field="grid")
        height, width = self._crop_size
        objects = layout_from_grid(len(request.crops), request.grid, self._crop_size)
        pages = [decode_field(raw, self.bounds, "crops").pixels for raw in request.crops]
        whole = [crop_objects(page, [(0, 0, page.shape[1], page.shape[0])], self._crop_size)[0] for page in pages]
        size = (objects.grid[1] * width, objects.grid[0] * height)
        return _Search(request=request, watch=watch, objects=objects, crops=np.stack(whole), size=size)

    @property
    def _crop_size(self) -> tuple[int, int]:
        """Height and width of a crop as the network takes it."""
        height, width = self.engine.inputs[0].shape[-2:]
        return height, width

    def infer(self, items: Sequence[_Search], run: CallContext) -> None:
        for item in items:
            with stage("run"):
                self._predict_scanpaths(item, run)

    def _predict_scanpaths(self, item: _Search, run: CallContext) -> None:
        request, ids = item.request, item.objects.ids
        here = np.array([index is not None for index in ids])
        step = _Stepper(self.engine, self._feeds(item), run)
        paths = 1 if request.mode == "greedy" else request.samples
        draw = None if request.mode == "greedy" else np.random.default_rng(request.seed)
        item.scanpaths = decode_scanpaths(
            lambda fixations: step(fixations)[:, -1], paths, request.max_fixations, draw=draw, barred=~here
        )
        if request.reference:
            cells = np.array([[ids.index(index) for index in request.reference]])
            logits = step(cells[:, :-1])[0, :, :-1].astype(np.float64)
            logits[:, :-1][:, ~here] = -np.inf
            odds = np.exp(logits - logits.max(1, keepdims=True))
            item.expected = odds / odds.sum(1, keepdims=True)

    def _feeds(self, item: _Search) -> dict[str, np.ndarray]:
        """The network's tensors for the objects; cells without one are white."""
        ids = item.objects.ids
        crops = np.ones((len(ids), *self._crop_size, 3), np.float32)
        for cell, index in enumerate(ids):
            if index is not None:
                crops[cell] = item.crops[index]
        rows, columns = np.divmod(np.arange(len(ids)), item.objects.grid[1])
        return {
            "crops": np.ascontiguousarray(crops.transpose(0, 3, 1, 2))[None],
            "cells": np.stack((rows, columns), 1)[None],
            "target": np.array([item.target]),
        }

    def postprocess(self, item: _Search) -> ScanpathOut:
        paths = [_scanpath(item, found) for found in item.scanpaths]
        return ScanpathOut(
            **self.facts(item),
            width=item.size[0],
            height=item.size[1],
            layout=item.objects.layout,
            target=item.request.target,
            paths=paths,
            found_share=round(sum(path.found for path in paths) / len(paths), 4),
        )

    def draw(self, item: _Search, answer: ScanpathOut, media_type: str) -> bytes | None:
        centres = [fixation.centre for fixation in answer.paths[0].fixations]
        x, y = item.objects.centres[item.request.target].tolist()
        return encode(draw_scanpath(self._page(item), centres, (x, y)), media_type)

    def _page(self, item: _Search) -> np.ndarray:
        """The picture of the shelf, decoded anew where there was no memory to keep it; or a page of the crops."""
        if item.request.image is None:
            return render_layout(item.crops, item.objects)
        return item.pixels if item.pixels is not None else decode_field(item.request.image, self.bounds).pixels


@dataclass(frozen=True, slots=True)
class _Stepper:
    """Logits (p, t + 1, n + 2) after fixations (p, t) on one shelf; stops when the run does."""

    engine: Engine
    feeds: dict[str, np.ndarray]
    run: CallContext

    def __call__(self, fixations: np.ndarray) -> np.ndarray:
        self.run.check()
        found = self.engine.run({**self.feeds, "fixations": fixations[None].astype(np.int64)})
        return np.asarray(found["logits"][0])


def _scanpath(item: _Search, found: DecodedScanpath) -> Scanpath:
    """One path with its behaviour, in ids of the objects."""
    ids = [cast("int", item.objects.ids[cell]) for cell in found.objects]
    reached, length, fresh, refixation, revisit = behaviour(ids, item.request.target)
    fixations = [
        Fixation(
            id=index,
            centre=_centre(item.objects, index),
            probability=round(float(chances[cell]), 6),
            label=item.labels[index] if item.labels else None,
        )
        for index, cell, chances in zip(ids, found.objects, found.probabilities, strict=True)
    ]
    return Scanpath(
        fixations=fixations,
        found=bool(reached),
        ended=found.ended,
        behaviour=Conduct(length=int(length), search=_r(fresh), refixation=_r(refixation), revisit=_r(revisit)),
        likeness=None if item.expected is None else _likeness(item, ids, item.expected),
    )


def _likeness(item: _Search, ids: list[int], expected: np.ndarray) -> ScanpathSimilarity:
    """Against the reference: alignment and shape of the path, and how expected each of its looks was."""
    reference = list(item.request.reference)
    ours, theirs = ([_centre(item.objects, index) for index in path] for path in (ids, reference))
    vector, direction, length, position, _ = multimatch(ours, theirs, (float(item.size[0]), float(item.size[1])))
    cells = [item.objects.ids.index(index) for index in range(len(item.crops))]  # those of objects, by id
    pairs = list(zip(expected[:, cells], reference, strict=True))
    return ScanpathSimilarity(
        sequence_score=_r(sequence_score(ids, reference)),
        vector=_r(vector),
        direction=_r(direction),
        length=_r(length),
        position=_r(position),
        sim=_r(float(np.mean([similarity(row, index) for row, index in pairs]))),
        nss=_r(float(np.mean([nss(row, index) for row, index in pairs]))),
    )


def _centre(objects: ObjectLayout, index: int) -> tuple[float, float]:
    x, y = objects.centres[index].tolist()
    return round(x, 2), round(y, 2)


def _r(value: float) -> float:
    return round(value, 6)
