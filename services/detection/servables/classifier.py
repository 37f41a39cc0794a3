"""Any picture classifier as a Servable: pictures in, classes of the whole or of each patch out.

Knows pictures, engines and the wire type; the networks are in `models`. A model file subclasses it with a card.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel

from services.detection.servables.classification_postprocess import (
    PatchGrid,
    classify,
    count_by_class,
    divide,
    normalise,
    resize_patch,
    tint_patches,
    to_csv,
)
from shared.api.classes import ClassifyIn, ClassifyOut
from shared.api.tensors import TensorSpec
from shared.api.timings import Times
from shared.errors import FoveaError, in_field
from shared.export.artifacts import ExportedForms, open_engine_with_card
from shared.registry import CallContext, Card, Engine, LoadContext, Servable
from shared.registry.weights import Weights, find_weights, read_weights
from shared.telemetry import stage
from shared.vision.decode import DEFAULT_BOUNDS, DecodeBounds, DecodedImage, decode
from shared.vision.decode_limits import decode_bounds
from shared.vision.draw import encode

__all__ = ["FEATURE_MAPS", "Classifier"]

FEATURE_MAPS = ("stage1", "stage2", "stage3", "stage4")
"""Feature maps beside `logits`: outputs of the network on the Open Inference route, and of `application/x-npz`."""

PATCHES_PER_RUN = 32
"""Patches per run of the engine: more would need memory and save no time."""

_NPZ = "application/x-npz"


@dataclass(slots=True)
class _Frame:
    """A picture on its way through: its patches (n, s, s, 3) still in bytes, its pixels already let go."""

    request: ClassifyIn
    patches: np.ndarray
    grid: PatchGrid
    size: tuple[int, int]
    notes: list[str]
    times: Times = field(default_factory=Times)


@dataclass(frozen=True, slots=True)
class _Sight:
    """How the network sees: classes by id, side of its square, share of a picture that it is shown."""

    names: tuple[str, ...]
    side: int
    crop: float


class Classifier(Servable[ClassifyIn, ClassifyOut]):
    """Classifies pictures with one network.

    Class attributes:
        weights: Name of its weights, `<weights>.safetensors` beside its manifest.
        folder: Where the weights that come with the package are.
    """

    In: ClassVar[type[BaseModel]] = ClassifyIn
    Out: ClassVar[type[BaseModel]] = ClassifyOut
    weights: ClassVar[str]
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"

    def __init__(self, card: Card, engine: Engine, sight: _Sight, limits: DecodeBounds = DEFAULT_BOUNDS) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.engine: Engine = engine
        self.sight = sight
        self.bounds = limits

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Verify the weights and open the engine that `place` wants.

        Raises:
            NotReady: Weights are missing or not what their manifest says, or the engine can't run here.
        """
        weights = read_weights(find_weights(cls.weights, cls.folder, place.weights))
        sight = _sight(weights)
        artefacts = _artefacts(weights, sight.side, place.cache)
        engine, card = open_engine_with_card(cls.card, artefacts, place)
        return cls(card, engine, sight, decode_bounds(cls.card, place))

    def predict(self, batch: Sequence[ClassifyIn], run: CallContext) -> list[ClassifyOut | FoveaError]:
        """Classes of pictures, in order; one that can't be read is answered by its error."""
        with stage("pre"):
            frames = [self._read(request, run) for request in batch]
        whole = [frame for frame in frames if isinstance(frame, _Frame)]
        logits = iter(self._infer(whole, run))
        with stage("post"):
            return [self._answer(frame, next(logits), run) if isinstance(frame, _Frame) else frame for frame in frames]

    def render(self, request: ClassifyIn, answer: ClassifyOut, media_type: str) -> bytes | None:
        """The picture with its patches tinted (PNG, JPEG), a table (CSV), or the feature maps of all patches (npz)."""
        if media_type == "text/csv":
            return to_csv(answer)
        if media_type == _NPZ:
            return self._features(request)
        if media_type not in self.media_types():
            return None
        return encode(tint_patches(self._decode(request).pixels, answer), media_type)

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """Tinted pictures, a table, feature maps."""
        return ("image/png", "image/jpeg", "text/csv", _NPZ)

    def example(self) -> ClassifyIn:
        """Six patches of pavement in one picture, and the Card's options."""
        picture = (Path(__file__).parents[1] / "models" / "patches.jpg").read_bytes()
        return ClassifyIn(image=picture, **self.card.example)

    def _decode(self, request: ClassifyIn) -> DecodedImage:
        with in_field("image"):
            return decode(request.image, self.bounds)

    def _read(self, request: ClassifyIn, run: CallContext) -> _Frame | FoveaError:
        run.check()
        begun = time.perf_counter()
        try:
            picture = self._decode(request)
            divided = divide(picture.height, picture.width, request.tile)
        except FoveaError as error:
            return error
        decoded = time.perf_counter()
        # Patches of a grid are shown whole: a crop would leave gaps between them.
        crop = self.sight.crop if request.tile is None else 1.0
        patches = np.stack([resize_patch(picture.pixels, box, self.sight.side, crop) for box in divided.boxes])
        frame = _Frame(request, patches, divided, (picture.height, picture.width), self._notes(picture, crop))
        frame.times.decode, frame.times.preprocess = _ms(decoded - begun), _ms(time.perf_counter() - decoded)
        return frame

    def _infer(self, frames: Sequence[_Frame], run: CallContext) -> list[np.ndarray]:
        """Logits (patches, classes) of each frame; patches of all frames share runs of the engine."""
        if not frames:
            return []
        begun = time.perf_counter()
        logits = self._run(np.concatenate([frame.patches for frame in frames]), ("logits",), run)["logits"]
        for frame in frames:
            frame.times.infer = _ms(time.perf_counter() - begun)
        return np.split(logits, np.cumsum([len(frame.patches) for frame in frames])[:-1])

    def _run(self, patches: np.ndarray, outputs: Sequence[str], run: CallContext) -> dict[str, np.ndarray]:
        """Outputs of the network for any number of patches (n, s, s, 3)."""
        (given,), parts = self.engine.inputs, []
        for first in range(0, len(patches), PATCHES_PER_RUN):
            run.check()
            run.progress(first / len(patches), f"{first} of {len(patches)} patches")
            with stage("run"):
                parts.append(self.engine.run({given.name: normalise(patches[first : first + PATCHES_PER_RUN])}))
        named = dict(zip(("logits", *FEATURE_MAPS), (spec.name for spec in self.engine.outputs), strict=True))
        return {name: np.concatenate([part[named[name]] for part in parts]) for name in outputs}

    def _answer(self, frame: _Frame, logits: np.ndarray, run: CallContext) -> ClassifyOut:
        run.check()
        begun = time.perf_counter()
        results = classify(logits, frame.grid, self.sight.names, frame.request.top_k)
        frame.times.post = _ms(time.perf_counter() - begun)
        height, width = frame.size
        return ClassifyOut(
            model=self.card.name,
            version=self.card.version,
            engine=self.engine.name,
            width=width,
            height=height,
            rows=frame.grid.rows,
            columns=frame.grid.columns,
            results=results,
            counts=count_by_class(results),
            times=frame.times,
            notes=frame.notes,
        )

    def _features(self, request: ClassifyIn) -> bytes:
        """The four maps and the logits of all patches, as an npz archive."""
        frame = self._read(request, CallContext())
        if isinstance(frame, FoveaError):
            raise frame
        out = io.BytesIO()
        made: dict[str, Any] = self._run(frame.patches, ("logits", *FEATURE_MAPS), CallContext())
        np.savez_compressed(out, boxes=np.array(frame.grid.boxes), **made)
        return out.getvalue()

    def _notes(self, picture: DecodedImage, crop: float) -> list[str]:
        side = f"{self.sight.side}×{self.sight.side}"
        how = f"Squashed to {side}" if crop == 1 else f"The middle, {crop:.0%} of the shorter side, scaled to {side}"
        return [f"{how} (antialiased bicubic).", *(["Only the first frame was read."] if picture.first_of_many else [])]


def _sight(weights: Weights) -> _Sight:
    """From the recipe of trained weights; official ones are ImageNet's, at the side and crop of its evaluation."""
    recipe, head = weights.manifest.recipe, weights.arrays["head.weight"]
    names = tuple(recipe.get("classes", ())) or tuple(f"class {index}" for index in range(len(head)))
    return _Sight(names, int(recipe.get("side", 224)), 1.0 if recipe else 0.9)


def _artefacts(weights: Weights, side: int, cache: Path) -> ExportedForms:
    """Logits and the four feature maps of square pictures."""
    first = len(weights.arrays["patch_embed.norm.weight"])
    given = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, side, side))
    logits = TensorSpec(name="logits", datatype="FP32", shape=(-1, len(weights.arrays["head.weight"])))
    maps = (
        TensorSpec(name=name, datatype="FP32", shape=(-1, first << level, side >> level + 2, side >> level + 2))
        for level, name in enumerate(FEATURE_MAPS)
    )
    return ExportedForms(weights, cache, (given,), (logits, *maps), tag=f"{side}px-v1", call="everything")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
