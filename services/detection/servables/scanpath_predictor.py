"""Any scanpath network as a Servable: a shelf and a target in, paths of looks out. A model file adds a card.

Knows shelves, engines and the wire type; the network is in `models`, walking in `scanpaths`, layouts in `shelf`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self, cast

import numpy as np
from PIL import Image
from pydantic import BaseModel
from torch import nn

from services.detection.gaze.object_layout import (
    ObjectLayout,
    crop_objects,
    draw_scanpath,
    layout_from_boxes,
    layout_from_grid,
    render_layout,
)
from services.detection.gaze.scanpaths import DecodedScanpath, decode_scanpaths
from services.detection.metrics import behaviour, multimatch, nss, sequence_score, similarity
from services.detection.models.object_attention import ObjectAttention
from shared.api.boxes import DetectOut
from shared.api.scanpath import Conduct, Fixation, Likeness, Scanpath, ScanpathIn, ScanpathOut, ScanpathTimes
from shared.api.tensors import TensorSpec
from shared.errors import FoveaError, InvalidOption, in_field
from shared.export.artifacts import ExportedForms, open_engine_with_card
from shared.registry import CallContext, Card, Engine, LoadContext, Servable
from shared.registry.weights import Weights, find_weights, read_weights
from shared.telemetry import stage
from shared.vision.decode import DEFAULT_BOUNDS, DecodeBounds, decode
from shared.vision.decode_limits import decode_bounds
from shared.vision.draw import encode

__all__ = ["ScanpathPredictor"]

LONGEST_SIDE = 24
"""Most rows or columns of a shelf that is served; position rows that the weights lack are fitted."""


@dataclass(slots=True)
class _Search:
    """A request on its way through: the shelf, its crops, and the picture to draw on."""

    request: ScanpathIn
    shelf: ObjectLayout
    crops: np.ndarray
    size: tuple[int, int]
    labels: list[str] | None
    notes: list[str]
    times: ScanpathTimes = field(default_factory=ScanpathTimes)

    @property
    def target(self) -> int:
        """Cell of the target."""
        return self.shelf.ids.index(self.request.target)


class ScanpathPredictor(Servable[ScanpathIn, ScanpathOut]):
    """Predicts scanpaths with one network.

    Class attributes:
        weights: Name of its weights, `<weights>.safetensors` beside its manifest.
        folder: Where the weights that come with the package are.
    """

    In: ClassVar[type[BaseModel]] = ScanpathIn
    Out: ClassVar[type[BaseModel]] = ScanpathOut
    weights: ClassVar[str]
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"

    def __init__(self, card: Card, engine: Engine, limits: DecodeBounds = DEFAULT_BOUNDS) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.engine: Engine = engine
        self.bounds = limits

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Verify the weights and open the engine that `place` wants.

        Raises:
            NotReady: Weights are missing or not what their manifest says, or the engine can't run here.
        """
        weights = read_weights(find_weights(cls.weights, cls.folder, place.weights))
        artefacts = _artefacts(weights, place.cache)
        engine, card = open_engine_with_card(cls.card, artefacts, place)
        return cls(card, engine, decode_bounds(cls.card, place))

    def predict(self, batch: Sequence[ScanpathIn], run: CallContext) -> list[ScanpathOut | FoveaError]:
        """Paths over shelves, in order; a shelf that can't be read is answered by its error."""
        return [self._attempt(request, run) for request in batch]

    def render(self, request: ScanpathIn, answer: ScanpathOut, media_type: str) -> bytes | None:
        """The shelf with its first path as numbered circles, as PNG or JPEG."""
        if media_type not in self.media_types():
            return None
        search = self._read(request)
        pixels = self._pixels(request) if request.image is not None else render_layout(search.crops, search.shelf)
        target = search.shelf.centres[request.target]
        centres = [fixation.centre for fixation in answer.paths[0].fixations]
        return encode(draw_scanpath(pixels, centres, (float(target[0]), float(target[1]))), media_type)

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """The numbered path."""
        return ("image/png", "image/jpeg")

    def example(self) -> ScanpathIn:
        """A shelf of 3 by 9 coloured boxes as crops, and the Card's options."""
        colours = [(214, 40, 57), (38, 100, 214), (34, 150, 70), (240, 180, 20), (140, 60, 180)]
        crops = []
        for place in range(27):
            page, file = Image.new("RGB", (32, 48), (232, 228, 220)), io.BytesIO()
            page.paste(colours[place * 7 % 5], (6, 8 + place % 3 * 6, 26, 40))
            page.save(file, "PNG")
            crops.append(file.getvalue())
        return ScanpathIn(crops=tuple(crops), grid=(3, 9), **self.card.example)

    def _attempt(self, request: ScanpathIn, run: CallContext) -> ScanpathOut | FoveaError:
        run.check()
        begun = time.perf_counter()
        try:
            with stage("pre"):
                search = self._read(request)
        except FoveaError as error:
            return error
        search.times.decode = _ms(time.perf_counter() - begun)
        begun = time.perf_counter()
        with stage("run"):
            walks, expected = self._walk(search, run)
        search.times.infer = _ms(time.perf_counter() - begun)
        with stage("post"):
            return self._answer(search, walks, expected)

    def _read(self, request: ScanpathIn) -> _Search:
        if (request.image is None) == (not request.crops):
            detail = "Send a picture of the shelf with its objects, or crops with their grid."
            raise InvalidOption(detail, field="image" if request.image is None else "crops")
        if (idle := "objects" if request.image is None else "grid") in request.model_fields_set:
            owner = "a picture of the shelf" if idle == "objects" else "crops"
            raise InvalidOption(f"{idle} belongs to {owner}, which was not sent.", hint="Leave it out.", field=idle)
        search = self._of_picture(request) if request.image is not None else self._of_crops(request)
        count = len(search.crops)
        for name, ids in (("target", (request.target,)), ("reference", request.reference)):
            if any(not 0 <= item < count for item in ids):
                raise InvalidOption(f"{name} names an object that is not there: ids are 0 to {count - 1}.", field=name)
        if max(search.shelf.grid) > LONGEST_SIDE:
            rows, columns = search.shelf.grid
            detail = f"The shelf has {rows} rows and {columns} columns; {LONGEST_SIDE} are served."
            raise InvalidOption(detail, hint="Send the objects of a part of the picture.", field="objects")
        return search

    def _of_picture(self, request: ScanpathIn) -> _Search:
        if not request.objects:
            raise InvalidOption("A picture of a shelf needs its objects.", hint="Send boxes.", field="objects")
        pixels, labels = self._pixels(request), None
        if isinstance(request.objects, DetectOut):
            labels = [found.label for found in request.objects.detections]
            boxes = tuple(found.box for found in request.objects.detections)
            if not boxes:
                raise InvalidOption("The answer of the detector holds no object.", field="objects")
        else:
            boxes = request.objects
        crops = crop_objects(pixels, boxes, self._crop)
        shelf = layout_from_boxes(boxes)
        note = f"{len(boxes)} boxes arranged in {shelf.grid[0]} rows and {shelf.grid[1]} columns."
        return _Search(request, shelf, crops, (pixels.shape[1], pixels.shape[0]), labels, [note])

    def _of_crops(self, request: ScanpathIn) -> _Search:
        if request.grid is None:
            raise InvalidOption("Crops need their grid.", hint="Send rows and columns, as [3, 9].", field="grid")
        height, width = self._crop
        shelf = layout_from_grid(len(request.crops), request.grid, self._crop)
        pages = [self._decoded(raw, "crops") for raw in request.crops]
        whole = [crop_objects(page, [(0, 0, page.shape[1], page.shape[0])], self._crop)[0] for page in pages]
        size = (shelf.grid[1] * width, shelf.grid[0] * height)
        return _Search(request, shelf, np.stack(whole), size, None, [])

    def _pixels(self, request: ScanpathIn) -> np.ndarray:
        return self._decoded(request.image or b"", "image")

    def _decoded(self, raw: bytes, name: str) -> np.ndarray:
        with in_field(name):
            return decode(raw, self.bounds).pixels

    @property
    def _crop(self) -> tuple[int, int]:
        """Height and width of a crop as the network takes it."""
        height, width = self.engine.inputs[0].shape[-2:]
        return height, width

    def _walk(self, search: _Search, run: CallContext) -> tuple[list[DecodedScanpath], np.ndarray | None]:
        """The paths, and the probabilities (t, n + 1) of each step of the reference where there is one."""
        request, ids = search.request, search.shelf.ids
        here = np.array([item is not None for item in ids])
        step = self._stepper(search, run)
        paths = 1 if request.mode == "greedy" else request.samples
        draw = None if request.mode == "greedy" else np.random.default_rng(request.seed)
        walks = decode_scanpaths(
            lambda fixations: step(fixations)[:, -1], paths, request.max_fixations, draw=draw, barred=~here
        )
        if not request.reference:
            return walks, None
        cells = np.array([[ids.index(item) for item in request.reference]])
        logits = step(cells[:, :-1])[0, :, :-1].astype(np.float64)
        logits[:, :-1][:, ~here] = -np.inf
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return walks, odds / odds.sum(1, keepdims=True)

    def _stepper(self, search: _Search, run: CallContext) -> _Stepper:
        height, width = self._crop
        cells = np.ones((len(search.shelf.ids), height, width, 3), np.float32)
        for cell, item in enumerate(search.shelf.ids):
            if item is not None:
                cells[cell] = search.crops[item]
        rows, columns = np.divmod(np.arange(len(cells)), search.shelf.grid[1])
        feeds = {
            "crops": np.ascontiguousarray(cells.transpose(0, 3, 1, 2))[None],
            "cells": np.stack((rows, columns), 1)[None],
            "target": np.array([search.target]),
        }
        return _Stepper(self.engine, feeds, run)

    def _answer(self, search: _Search, walks: list[DecodedScanpath], expected: np.ndarray | None) -> ScanpathOut:
        begun = time.perf_counter()
        paths = [_path(search, found, expected) for found in walks]
        search.times.post = _ms(time.perf_counter() - begun)
        return ScanpathOut(
            model=self.card.name,
            version=self.card.version,
            engine=self.engine.name,
            width=search.size[0],
            height=search.size[1],
            layout=search.shelf.layout,
            target=search.request.target,
            paths=paths,
            found_share=round(sum(path.found for path in paths) / len(paths), 4),
            times=search.times,
            notes=search.notes,
        )


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


def _path(search: _Search, found: DecodedScanpath, expected: np.ndarray | None) -> Scanpath:
    """One path with its behaviour, in ids of the objects."""
    ids = [cast("int", search.shelf.ids[cell]) for cell in found.objects]
    reached, length, fresh, refixation, revisit = behaviour(ids, search.request.target)
    fixations = [
        Fixation(
            id=item,
            centre=_centre(search.shelf, item),
            probability=round(float(chances[cell]), 6),
            label=search.labels[item] if search.labels else None,
        )
        for item, cell, chances in zip(ids, found.objects, found.probabilities, strict=True)
    ]
    return Scanpath(
        fixations=fixations,
        found=bool(reached),
        ended=found.ended,
        behaviour=Conduct(length=int(length), search=_r(fresh), refixation=_r(refixation), revisit=_r(revisit)),
        likeness=None if expected is None else _likeness(search, ids, expected),
    )


def _likeness(search: _Search, ids: list[int], expected: np.ndarray) -> Likeness:
    """Against the reference: alignment and shape of the path, and how expected each of its looks was."""
    reference = list(search.request.reference)
    ours, theirs = ([_centre(search.shelf, item) for item in path] for path in (ids, reference))
    vector, direction, length, position, _ = multimatch(ours, theirs, (float(search.size[0]), float(search.size[1])))
    cells = [search.shelf.ids.index(item) for item in reference]
    pairs = list(zip(expected, cells, strict=True))
    return Likeness(
        sequence_score=_r(sequence_score(ids, reference)),
        vector=_r(vector),
        direction=_r(direction),
        length=_r(length),
        position=_r(position),
        sim=_r(float(np.mean([similarity(row[:-1], cell) for row, cell in pairs]))),
        nss=_r(float(np.mean([nss(row[:-1], cell) for row, cell in pairs]))),
    )


def _centre(shelf: ObjectLayout, item: int) -> tuple[float, float]:
    x, y = shelf.centres[item].tolist()
    return round(x, 2), round(y, 2)


def _artefacts(weights: Weights, cache: Path) -> ExportedForms:
    """Logits of several paths on several shelves of any grid."""
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
    return ExportedForms(weights, cache, given, (wanted,), tag="v1", call="logits", prepare=_extended, shapes=shapes)


def _extended(net: nn.Module) -> nn.Module:
    return cast("ObjectAttention", net).extend(LONGEST_SIDE)


def _r(value: float) -> float:
    return round(value, 6)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
