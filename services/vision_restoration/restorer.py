"""A restoring network as a Servable: pictures in, pictures of the same size out. A model file adds the Card.

Knows files, tiles and the wire type; how a picture is cut is `tiles`, what a file holds is `files`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import BaseModel

from services.vision_restoration.comparison_images import (
    compare_side_by_side,
    mean_change,
    subtract_result,
    to_8_bits,
    to_16_bits,
)
from services.vision_restoration.image_io import Format, PictureFile, read_image, write_image
from services.vision_restoration.metrics import psnr, ssim
from services.vision_restoration.models.rrformer_network import Variant
from services.vision_restoration.tiled_inference import TilePlan, plan_tiles, restore_by_tiles
from services.vision_restoration.weights_loading import build_artifacts, bytes_per_pixel, load_weights
from shared.api.restore import Estimate, Likeness, RestoreIn, RestoreOut, RestoreTimes
from shared.engines import open_engine
from shared.errors import Cancelled, DeadlineExceeded, FoveaError, InvalidOption, in_field
from shared.export.artifacts import check_tensors, refine_card
from shared.registry import CallContext, Engine, LoadContext, Servable
from shared.registry.weights import Weights
from shared.telemetry import stage
from shared.vision.decode_limits import decode_bounds
from shared.vision.draw import encode

__all__ = ["Restorer"]

_PROBE = 128
"""Side of the picture by which the pace of a network is first measured."""


@dataclass(slots=True)
class _Opened:
    """A variant's engine, and its pace: seconds per pixel of a window, renewed by every picture."""

    engine: Engine
    pace: float


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A request whose picture is read and whose tiles are planned."""

    request: RestoreIn
    variant: Variant
    picture: PictureFile
    plan: TilePlan
    form: Format
    estimate: Estimate
    times: RestoreTimes


class Restorer(Servable[RestoreIn, RestoreOut]):
    """Restores pictures with one network in two variants; the other variant's graph is opened when first asked for.

    Class attributes:
        folder: Where the weights that come with the package are.
    """

    In: ClassVar[type[BaseModel]] = RestoreIn
    Out: ClassVar[type[BaseModel]] = RestoreOut
    folder: ClassVar[Path] = Path(__file__).parent / "weights"

    def __init__(self, place: LoadContext, weights: Weights) -> None:
        self._place, self._weights = place, weights
        self._opening = threading.Lock()
        self._opened: dict[Variant, _Opened] = {}
        self.variant: Variant = weights.manifest.network.config.get("variant", "released")
        self.engine: Engine = self._open(self.variant).engine
        card = refine_card(type(self).card, build_artifacts(weights, self.variant, place.cache), self.engine.name)
        self.card = card.model_copy(update={"variant": self.variant})  # type: ignore[misc]  # the class's, refined
        self.bounds = decode_bounds(self.card, place)

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Verify the weights and open the engine that `place` wants.

        Raises:
            NotReady: Weights are missing or not what their manifest says, or the engine can't run here.
        """
        return cls(place, load_weights(cls.folder, place.weights))

    def predict(self, batch: Sequence[RestoreIn], run: CallContext) -> list[RestoreOut | FoveaError]:
        """Restored pictures, in order, one after another; one that can't be restored is answered by its error."""
        answers: list[RestoreOut | FoveaError] = []
        for request in batch:
            run.check()
            try:
                asked = self._ask(request, run)
                answers.append(self._answer(asked, run, share=(len(answers), len(batch))))
            except Cancelled:
                raise
            except FoveaError as error:
                answers.append(error)
        return answers

    def render(self, request: RestoreIn, answer: RestoreOut, media_type: str) -> bytes | None:
        """The picture that `request.picture` names, as PNG, JPEG or WebP."""
        if media_type not in self.media_types():
            return None
        if answer.restored is None:
            again = request.model_copy(update={"include": ("restored",), "dry_run": False})
            (answered,) = self.predict([again], CallContext())
            if isinstance(answered, FoveaError):
                raise answered
            answer = answered
        form = _form(media_type.removeprefix("image/"))
        if request.picture == "restored" and answer.format == form:
            return answer.restored
        result = read_image(answer.restored or b"", self.bounds)
        if request.picture == "restored":
            pixels = result.pixels if form == "png" else to_8_bits(result.pixels)
            return write_image(replace(result, pixels=pixels), form, request.quality)
        made = subtract_result if request.picture == "reflection" else compare_side_by_side
        given = self._read(request.image, "image").pixels
        return encode(made(to_8_bits(given), to_8_bits(result.pixels)), media_type, quality=request.quality)

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """Before and after, or one of them."""
        return ("image/png", "image/jpeg", "image/webp")

    def example(self) -> RestoreIn:
        """A photograph under a synthetic reflection, and the Card's options."""
        picture = resources.files("services.vision_restoration.models").joinpath("example.jpg").read_bytes()
        return RestoreIn(image=picture, **self.card.example)

    def close(self) -> None:
        """Free the graphs of all variants."""
        for opened in self._opened.values():
            opened.engine.close()

    def _open(self, variant: Variant) -> _Opened:
        """The engine of a variant, opened and timed once."""
        with self._opening:
            if variant not in self._opened:
                made = build_artifacts(self._weights, variant, self._place.cache)
                engine = open_engine(self._place, made.forms(f"{type(self).card.name}-{variant}"))
                check_tensors(engine, made)
                self._opened[variant] = _Opened(engine, _pace(engine))
            return self._opened[variant]

    def _read(self, data: bytes, name: str) -> PictureFile:
        with in_field(name):
            return read_image(data, self.bounds)

    def _ask(self, request: RestoreIn, run: CallContext) -> _Asked:
        """Read the picture, plan its tiles, and refuse what can't end in time.

        Raises:
            DeadlineExceeded: It would take longer than the caller waits.
            InvalidOption: The result has no such form.
        """
        begun = time.perf_counter()
        with stage("pre"):
            picture = self._read(request.image, "image")
        variant = request.variant or self.variant
        opened = self._open(variant)
        height, width = picture.pixels.shape[:2]
        per_pixel = bytes_per_pixel(self._weights, opened.engine.name)
        how = plan_tiles(height, width, variant, request, per_pixel)
        deep = picture.pixels.dtype == np.uint16
        estimate = how.estimate(opened.pace, per_pixel, deep=deep)
        form = _form(request.format if request.format != "same" else picture.format)
        if request.bit_depth == "16" and form != "png":
            raise InvalidOption(f"A {form} has no 16 bits.", hint="Ask for format=png.", field="bit_depth")
        if run.deadline is not None and not request.dry_run and time.monotonic() + estimate.seconds > run.deadline:
            raise DeadlineExceeded(
                f"{estimate.tiles} tiles would take about {estimate.seconds:.0f} s, longer than the request may.",
                hint="Send it with `Prefer: respond-async`: it then runs as a job, with progress.",
            )
        return _Asked(request, variant, picture, how, form, estimate, RestoreTimes(decode=_ms(begun)))

    def _answer(self, asked: _Asked, run: CallContext, share: tuple[int, int]) -> RestoreOut:
        """Restore a picture; `share` is its place among the pictures of its batch, and their number."""
        request, picture = asked.request, asked.picture
        facts = self._facts(asked)
        if request.dry_run:
            return RestoreOut(**facts)
        done_before, pictures = share

        def tell(done: int) -> None:
            fraction = (done_before + done / asked.plan.tiles) / pictures
            run.progress(fraction, f"tile {done} of {asked.plan.tiles}")

        begun, opened = time.perf_counter(), self._open(asked.variant)
        with stage("run"):
            pixels = restore_by_tiles(opened.engine, picture.pixels, asked.plan, run, tell)
        asked.times.infer = _ms(begun)
        opened.pace = (time.perf_counter() - begun) / asked.plan.area
        with stage("post"):
            return RestoreOut(**facts, **self._made(asked, pixels))

    def _facts(self, asked: _Asked) -> dict[str, object]:
        picture = asked.picture
        height, width = picture.pixels.shape[:2]
        return {
            "model": self.card.name,
            "version": self.card.version,
            "engine": self.engine.name,
            "variant": asked.variant,
            "width": width,
            "height": height,
            "format": asked.form,
            "bit_depth": _depth(asked),
            "estimate": asked.estimate,
            "times": asked.times,
            "notes": [*picture.notes, *self._remarks(asked)],
        }

    def _remarks(self, asked: _Asked) -> list[str]:
        if asked.variant == self.variant:
            return []
        return [f"The weights were trained as {self.variant}; {asked.variant} is not what they learnt."]

    def _made(self, asked: _Asked, pixels: np.ndarray) -> dict[str, object]:
        """The pictures and numbers that were asked for."""
        begun, given, request = time.perf_counter(), asked.picture, asked.request
        kept = to_16_bits(pixels) if _depth(asked) == 16 else to_8_bits(pixels)
        made: dict[str, object] = {"mean_change": round(mean_change(given.pixels, pixels), 6)}
        if "restored" in request.include:
            made["restored"] = write_image(replace(given, pixels=kept), asked.form, request.quality)
        if "reflection" in request.include:
            made["reflection"] = encode(to_8_bits(subtract_result(given.pixels, pixels)))
        if "comparison" in request.include:
            made["comparison"] = encode(compare_side_by_side(given.pixels, pixels), "image/jpeg")
        if request.reference is not None:
            wanted = to_8_bits(self._read(request.reference, "reference").pixels)
            made |= {"likeness": _likeness(pixels, wanted), "input_likeness": _likeness(given.pixels, wanted)}
        asked.times.encode = _ms(begun)
        return made


def _form(wanted: str) -> Format:
    """The format of that name; PNG for one that is only read."""
    return "jpeg" if wanted == "jpeg" else "webp" if wanted == "webp" else "png"


def _depth(asked: _Asked) -> int:
    """Bits per channel of the result: 16 where the file had them and the format has them, or as asked for."""
    if asked.request.bit_depth != "same":
        return int(asked.request.bit_depth)
    return 16 if asked.picture.pixels.dtype == np.uint16 and asked.form == "png" else 8


def _likeness(pixels: np.ndarray, reference: np.ndarray) -> Likeness:
    """How like a reference of 8 bits a picture is.

    Raises:
        InvalidOption: They differ in size.
    """
    if pixels.shape != reference.shape:
        (height, width), (high, wide) = pixels.shape[:2], reference.shape[:2]
        detail = f"The reference is {wide}×{high} pixels, the picture {width}×{height}."
        raise InvalidOption(detail, hint="Crop one to the other.", field="reference")
    found = psnr(to_8_bits(pixels), reference)
    small = min(pixels.shape[:2]) < 11
    return Likeness(
        psnr=None if math.isinf(found) else round(found, 3),
        ssim=None if small else round(ssim(to_8_bits(pixels), reference), 5),
    )


def _pace(engine: Engine) -> float:
    """Seconds per pixel, by the second of two runs: the first one sets things up."""
    feed = {engine.inputs[0].name: np.zeros((1, 3, _PROBE, _PROBE), np.float32)}
    engine.run(feed)
    begun = time.perf_counter()
    engine.run(feed)
    return (time.perf_counter() - begun) / _PROBE**2


def _ms(since: float) -> float:
    return round((time.perf_counter() - since) * 1000, 2)
