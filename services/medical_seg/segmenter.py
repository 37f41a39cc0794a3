"""Any polyp network as a Servable: pictures in, masks out. A model file subclasses it with a card, and that is all.

Knows pictures, engines and the wire type; the networks are in `models`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import BaseModel

from services.medical_seg.models.polyp_network import TENSOR_NAMES
from services.medical_seg.postprocess import draw_mask, encode_forms, extract_mask, measure
from services.medical_seg.preprocess import resize_and_normalise
from shared.api.mask import SegmentIn, SegmentOut
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

__all__ = ["MIN_CONTRAST", "TENSOR_NAMES", "Segmenter"]

MIN_CONTRAST = 0.05
"""Standard deviation of each channel of the network's input, about 3 of 255 grey levels, below which it is blind."""

_FLAT = (
    "The picture has next to no contrast, like a covered lens or a black frame. The network was made for frames that "
    "show mucosa; what it marks here means nothing."
)


@dataclass(slots=True)
class _Frame:
    """A picture on its way through: ready for the network, its pixels already let go."""

    request: SegmentIn
    tensor: np.ndarray
    size: tuple[int, int]
    notes: list[str]
    times: Times = field(default_factory=Times)

    @property
    def warnings(self) -> list[str]:
        """Why nobody should believe the mask."""
        return [_FLAT] if float(self.tensor.std(axis=(1, 2)).max()) < MIN_CONTRAST else []


class Segmenter(Servable[SegmentIn, SegmentOut]):
    """Segments pictures with one network.

    Class attributes:
        weights: Name of its weights, `<weights>.safetensors` beside its manifest.
        folder: Where the weights that come with the package are.
        side: Side of the square that the network sees, pixels, unless the recipe of its weights says another.
    """

    In: ClassVar[type[BaseModel]] = SegmentIn
    Out: ClassVar[type[BaseModel]] = SegmentOut
    weights: ClassVar[str]
    folder: ClassVar[Path] = Path(__file__).parent / "weights"
    side: ClassVar[int] = 352

    def __init__(self, card: Card, engine: Engine, side: int, limits: DecodeBounds = DEFAULT_BOUNDS) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.engine: Engine = engine
        self.pixels = side
        self.bounds = limits

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Verify the weights and open the engine that `place` wants.

        Raises:
            NotReady: Weights are missing or not what their manifest says, or the engine can't run here.
        """
        weights = read_weights(find_weights(cls.weights, cls.folder, place.weights))
        side = int(weights.manifest.recipe.get("scale", {}).get("side", cls.side))
        artefacts = _artefacts(weights, side, place.cache)
        engine, card = open_engine_with_card(cls.card, artefacts, place)
        return cls(card, engine, side, decode_bounds(cls.card, place))

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        """Masks of pictures, in order; one that can't be read is answered by its error."""
        with stage("pre"):
            frames = [self._read(request, run) for request in batch]
        whole = [frame for frame in frames if isinstance(frame, _Frame)]
        logits = iter(self._infer(whole, run))
        with stage("post"):
            return [self._answer(frame, next(logits), run) if isinstance(frame, _Frame) else frame for frame in frames]

    def render(self, request: SegmentIn, answer: SegmentOut, media_type: str) -> bytes | None:
        """The picture with its mask drawn on it, as PNG or JPEG."""
        if media_type not in self.media_types():
            return None
        if media_type == "image/jpeg" and answer.overlay is not None:
            return answer.overlay
        if answer.mask is None:
            (answered,) = self.predict([request.model_copy(update={"include": ("mask",)})], CallContext())
            if isinstance(answered, FoveaError):
                raise answered
            answer = answered
        mask = decode(answer.mask or b"", self.bounds).pixels[..., 0] > 0
        return encode(draw_mask(self._decode(request).pixels, mask), media_type)

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """The overlay."""
        return ("image/png", "image/jpeg")

    def example(self) -> SegmentIn:
        """A synthetic frame with a polyp, and the Card's options."""
        frame = resources.files("services.medical_seg.models").joinpath("example.jpg").read_bytes()
        return SegmentIn(image=frame, **self.card.example)

    def _decode(self, request: SegmentIn) -> DecodedImage:
        with in_field("image"):
            return decode(request.image, self.bounds)

    def _read(self, request: SegmentIn, run: CallContext) -> _Frame | FoveaError:
        run.check()
        begun = time.perf_counter()
        try:
            picture = self._decode(request)
        except FoveaError as error:
            return error
        decoded = time.perf_counter()
        frame = _Frame(
            request,
            resize_and_normalise(picture.pixels, self.pixels),
            (picture.height, picture.width),
            self._notes(picture),
        )
        frame.times.decode, frame.times.preprocess = _ms(decoded - begun), _ms(time.perf_counter() - decoded)
        return frame

    def _infer(self, frames: Sequence[_Frame], run: CallContext) -> np.ndarray:
        """Logits (n, s, s) of all frames, in one run of the engine."""
        if not frames:
            return np.empty((0, 0, 0), np.float32)
        run.check()
        begun = time.perf_counter()
        (given,), (wanted,) = self.engine.inputs, self.engine.outputs
        with stage("run"):
            logits = self.engine.run({given.name: np.stack([frame.tensor for frame in frames])})[wanted.name]
        for frame in frames:
            frame.times.infer = _ms(time.perf_counter() - begun)
        return logits[:, 0]

    def _answer(self, frame: _Frame, logits: np.ndarray, run: CallContext) -> SegmentOut:
        run.check()
        begun, request = time.perf_counter(), frame.request
        found = extract_mask(logits, *frame.size, request)
        made = encode_forms(found, request)
        if "overlay" in request.include:
            # Decoded anew: holding the pixels of a whole batch until here would cost three bytes for each of them.
            made["overlay"] = encode(draw_mask(self._decode(request).pixels, found.mask), "image/jpeg")
        frame.times.post = _ms(time.perf_counter() - begun)
        return SegmentOut(
            model=self.card.name,
            version=self.card.version,
            engine=self.engine.name,
            times=frame.times,
            notes=frame.notes,
            warnings=frame.warnings,
            **measure(found),
            **made,
        )

    def _notes(self, picture: DecodedImage) -> list[str]:
        how = f"Squashed to {self.pixels}×{self.pixels} (antialiased bilinear); logits enlarged bilinearly"
        return [f"{how}, align_corners=False.", *(["Only the first frame was read."] if picture.first_of_many else [])]


def _artefacts(weights: Weights, side: int, cache: Path) -> ExportedForms:
    """Logits of square pictures; a graph of free sides would take what the network was not made for."""
    given, wanted = (
        TensorSpec(name=tensor, datatype="FP32", shape=(-1, channels, side, side))
        for tensor, channels in zip(TENSOR_NAMES, (3, 1), strict=True)
    )
    return ExportedForms(weights, cache, (given,), (wanted,), tag=f"{side}px-v1", call="prediction")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
