"""Classifier: serves picture classifiers, classes of a whole picture or of each patch. A model file adds a card.

Knows pictures and the wire type; the networks are in `models`.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from fovea.api.classes import ClassifyIn, ClassifyOut
from fovea.api.tensors import TensorSpec
from services.detection.servables.patches import (
    PatchGrid,
    classify,
    count_by_class,
    divide,
    normalise,
    pool_stages,
    resize_patch,
    tint_patches,
    to_csv,
)
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext
from shared.registry.sparsity_claims import build_claim, read_measurements
from shared.registry.weights import Weights
from shared.sparsity import SparsityClaim
from shared.vision.draw import encode
from shared.vision.servable import DataConfig, Stopwatch, VisionItem, VisionServable, decode_field, reading_notes

FEATURE_MAPS = ("stage1", "stage2", "stage3", "stage4")
"""Feature maps next to `logits`: outputs of the network on the Open Inference route, and of `application/x-npz`."""

FEATURE_MAPS_NOTE = (
    "Feature maps of the four stages, for a detector: outputs stage1 to stage4 on the Open Inference "
    "route, or Accept: application/x-npz here."
)
"""Text about these on Cards of networks with four stages."""

PATCHES_PER_RUN = 32
"""Patches per run of the engine: more would need memory and save no time."""

_NPZ = "application/x-npz"
_DRAWN = ("image/png", "image/jpeg")

Arrays = tuple[np.ndarray, ...]


@dataclass(slots=True, kw_only=True)
class _Frame(VisionItem[ClassifyIn]):
    """A picture of this size (h, w) as patches (n, s, s, 3), still in bytes.

    Attributes:
        maps: Logits and feature maps of all patches, where they are what was asked for.
    """

    patches: np.ndarray
    grid: PatchGrid
    size: tuple[int, int]
    maps: list[np.ndarray] = field(default_factory=list, init=False)


class Classifier(VisionServable[ClassifyIn, ClassifyOut, _Frame]):
    """Classifies pictures with one network."""

    In: ClassVar[type[BaseModel]] = ClassifyIn
    Out: ClassVar[type[BaseModel]] = ClassifyOut
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"
    sample: ClassVar[Path] = Path(__file__).parents[1] / "models" / "clothes.jpg"
    forms: ClassVar[tuple[str, ...]] = (*_DRAWN, "text/csv", _NPZ)

    @classmethod
    def data_config(cls, weights: Weights) -> DataConfig:
        recipe, head = weights.manifest.recipe, weights.arrays["head.weight"]
        listed = tuple(filter(None, weights.manifest.data.get("names", "").split(",")))
        names = tuple(recipe.get("classes", ())) or listed or tuple(f"class {index}" for index in range(len(head)))
        return DataConfig(side=int(recipe.get("side", 224)), names=names, crop=1.0 if recipe else 0.9)

    @classmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        side, first = config.side, len(weights.arrays["patch_embed.norm.weight"])
        given = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, side, side))
        logits = TensorSpec(name="logits", datatype="FP32", shape=(-1, len(weights.arrays["head.weight"])))
        maps = (
            TensorSpec(name=name, datatype="FP32", shape=(-1, first << level, side >> level + 2, side >> level + 2))
            for level, name in enumerate(FEATURE_MAPS)
        )
        return ExportedForms(weights, cache, (given,), (logits, *maps), tag=f"{side}px-v1", call="everything")

    def read(self, request: ClassifyIn, watch: Stopwatch, run: CallContext) -> _Frame:
        image = decode_field(request.image, self.bounds)
        watch.lap("decode")
        grid, side = divide(image.height, image.width, request.tile), self.config.side
        # Patches of a grid are shown whole: a crop would leave gaps between them.
        crop = self.config.crop if request.tile is None else 1.0
        how = "Squashed" if crop == 1 else f"The middle, {crop:.0%} of the shorter side, scaled"
        return _Frame(
            request=request,
            watch=watch,
            notes=reading_notes(f"{how} to {side}×{side} (antialiased bicubic).", image),
            patches=np.stack([resize_patch(image.pixels, box, side, crop) for box in grid.boxes]),
            grid=grid,
            size=(image.height, image.width),
            pixels=self.bounds.memory.keep(image.pixels) if run.media in _DRAWN else None,
        )

    def infer(self, items: Sequence[_Frame], run: CallContext) -> None:
        whole = run.media == _NPZ
        columns = self._run(
            np.concatenate([item.patches for item in items]), run, tuple if whole else _logits_and_features
        )
        ends = np.cumsum([len(item.patches) for item in items])[:-1]
        for item, *rows in zip(items, *(np.split(column, ends) for column in columns), strict=True):
            item.maps = rows if whole else []
            item.outputs = _pool(rows) if whole else tuple(rows)

    def _run(self, patches: np.ndarray, run: CallContext, keep: Callable[[Arrays], Arrays]) -> list[np.ndarray]:
        """The part of the network's outputs (n, …) to keep for any number of patches (n, s, s, 3)."""
        (given,), rows = self.engine.inputs, list[tuple[np.ndarray, ...]]()
        for first in range(0, len(patches), PATCHES_PER_RUN):
            run.check()
            run.progress(first / len(patches), f"{first} of {len(patches)} patches")
            made = self.run_engine({given.name: normalise(patches[first : first + PATCHES_PER_RUN])})
            rows += map(keep, made)
        return [np.stack(column) for column in zip(*rows, strict=True)]

    def postprocess(self, item: _Frame) -> ClassifyOut:
        logits, features = item.outputs
        temperature = self.config.constants.get("temperature", 1.0)
        results = classify(logits / temperature, item.grid, self.config.names, item.request.top_k)
        height, width = item.size
        return ClassifyOut(
            **self.facts(item),
            width=width,
            height=height,
            rows=item.grid.rows,
            columns=item.grid.columns,
            results=results,
            counts=count_by_class(results),
            warnings=self.config.warn(features.mean(axis=0)),
        )

    def draw(self, item: _Frame, answer: ClassifyOut, media_type: str) -> bytes | None:
        if media_type == "text/csv":
            return to_csv(answer)
        if media_type == _NPZ:
            return _archive(item)
        pixels = item.pixels if item.pixels is not None else decode_field(item.request.image, self.bounds).pixels
        return encode(tint_patches(pixels, answer), media_type)


def _archive(item: _Frame) -> bytes:
    """The four maps and the logits of all patches, as an npz archive."""
    made: dict[str, Any] = dict(zip(("logits", *FEATURE_MAPS), item.maps, strict=True))
    out = io.BytesIO()
    np.savez_compressed(out, boxes=np.array(item.grid.boxes), **made)
    return out.getvalue()


def _pool(columns: Sequence[np.ndarray]) -> Arrays:
    """Logits and pooled features of many patches."""
    logits, *stages = columns
    return logits, pool_stages(stages)


def _logits_and_features(row: Arrays) -> Arrays:
    logits, *stages = row
    return logits, pool_stages([stage[None] for stage in stages])[0]


def claim_idle_channels(name: str) -> SparsityClaim:
    """The claim of a network whose convolutions leave channels idle, as `models/claims.json` has it measured."""
    return build_claim(
        name,
        read_measurements(Path(__file__).parents[1] / "models" / "claims.json").get(name, {}),
        kind="weight",
        granularity="channel",
        when="before",
        path="sparse-to-sparse",
        mask="static",
    )
