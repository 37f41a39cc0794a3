"""Segmenter: serves polyp networks, pictures in, masks out. A model file adds a card and a network.

Knows pictures and the wire type; the networks are in `models`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from pydantic import BaseModel

from fovea.api.mask import SegmentIn, SegmentOut
from fovea.api.tensors import TensorSpec
from services.medical_seg.postprocess import BYTES_PER_PIXEL, draw_mask, encode_forms, extract_mask, measure
from services.medical_seg.preprocess import resize_and_normalise
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext, Card
from shared.registry.weights import Weights
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

TENSOR_NAMES = ("image", "logits")
"""Input and output of the network as tensors, in the ONNX graph and on the Open Inference route."""

MAX_PIXELS = 2**23
"""Largest picture, pixels, unless the Card says otherwise: a frame of 3840×2160 fits."""

MIN_CONTRAST = 0.05
"""Standard deviation of each channel of the network's input, about 3 of 255 grey levels, below which it is blind."""

_NO_CONTRAST = (
    "The picture has next to no contrast, like a covered lens or a black frame. The network was made for frames that "
    "show mucosa; what it marks here means nothing."
)


@dataclass(slots=True, kw_only=True)
class _Frame(VisionItem[SegmentIn]):
    """A picture of this size (h, w), ready for the network, and the mask (h, w) that was found in it."""

    size: tuple[int, int]
    mask: np.ndarray | None = field(default=None, init=False)


class Segmenter(VisionServable[SegmentIn, SegmentOut, _Frame]):
    """Segments pictures with one network.

    Class attributes:
        side: Side of the square that the network sees, pixels, unless the recipe of its weights says another.
    """

    In: ClassVar[type[BaseModel]] = SegmentIn
    Out: ClassVar[type[BaseModel]] = SegmentOut
    folder: ClassVar[Path] = Path(__file__).parent / "weights"
    sample: ClassVar[Path] = Path(__file__).parent / "models" / "example.jpg"
    forms: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg")
    side: ClassVar[int] = 352

    @classmethod
    def data_config(cls, weights: Weights) -> DataConfig:
        return DataConfig(side=int(weights.manifest.recipe.get("scale", {}).get("side", cls.side)))

    @classmethod
    def describe(cls, card: Card, config: DataConfig) -> Card:
        limits = card.limits.model_copy(update={"max_pixels": card.limits.max_pixels or MAX_PIXELS})
        return card.model_copy(update={"limits": limits})

    @classmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        given, wanted = (
            TensorSpec(name=name, datatype="FP32", shape=(-1, channels, config.side, config.side))
            for name, channels in zip(TENSOR_NAMES, (3, 1), strict=True)
        )
        forms = ExportedForms(weights, cache, (given,), (wanted,), tag=f"{config.side}px-v1", call="prediction")
        return add_features(forms, config.familiar)

    def details(self) -> dict[str, Any]:
        return {"defaults": {"min_peak": self.config.constants.get("peak", 0.0)}}

    def read(self, request: SegmentIn, watch: Stopwatch, run: CallContext) -> _Frame:
        image, side = decode_field(request.image, self.bounds), self.config.side
        is_drawn = run.media in self.forms or "overlay" in request.include
        watch.lap("decode")
        how = f"Squashed to {side}×{side} (antialiased bilinear); logits enlarged bilinearly, align_corners=False."
        return _Frame(
            request=request,
            watch=watch,
            inputs=(resize_and_normalise(image.pixels, side),),
            notes=reading_notes(how, image),
            size=(image.height, image.width),
            pixels=self.bounds.memory.keep(image.pixels) if is_drawn else None,
        )

    def postprocess(self, item: _Frame) -> SegmentOut:
        height, width = item.size
        with self.bounds.memory.reserve(height * width * BYTES_PER_PIXEL, f"An answer of {width:,}×{height:,} pixels"):
            return self._answer(item)

    def _answer(self, item: _Frame) -> SegmentOut:
        check, request = item.context.check, item.request
        logits, *features = item.outputs
        constants = self.config.constants
        if request.min_peak is None:
            request = request.model_copy(update={"min_peak": constants.get("peak", 0.0)})
        scaled = logits[0] / np.float32(constants.get("temperature", 1.0))
        found = extract_mask(scaled, *item.size, request, check)
        made, item.mask = encode_forms(found, item.request, check), found.mask
        if "overlay" in item.request.include:
            made["overlay"] = self._drawn(item, "image/jpeg")
        blind = float(item.inputs[0].std(axis=(1, 2)).max()) < MIN_CONTRAST
        warnings = [_NO_CONTRAST] if blind else [text for row in features for text in self.config.warn(row)]
        return SegmentOut(**self.facts(item), warnings=warnings, **measure(found), **made)

    def draw(self, item: _Frame, answer: SegmentOut, media_type: str) -> bytes | None:
        if media_type == "image/jpeg" and answer.overlay is not None:
            return answer.overlay
        return self._drawn(item, media_type)

    def _drawn(self, item: _Frame, media_type: str) -> bytes:
        """The picture with its mask; decoded anew where there was no memory to keep it."""
        pixels = item.pixels if item.pixels is not None else decode_field(item.request.image, self.bounds).pixels
        return encode(draw_mask(pixels, cast("np.ndarray", item.mask)), media_type)
