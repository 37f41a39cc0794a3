"""Restorer: serves restoring networks, pictures in, pictures of the same size out. A model file adds a card.

Knows files, tiles and the wire type; tiling is `tiled_inference`, files are `image_io`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self, cast, get_args

import numpy as np
from pydantic import BaseModel

from fovea.api.restore import Estimate, ImageSimilarity, RestoreIn, RestoreOut
from fovea.errors import DeadlineExceeded, InvalidOption, in_field
from services.vision_restoration.carry_over import carry_over, shrink, working_size
from services.vision_restoration.comparison_images import (
    compare_side_by_side,
    mean_change,
    subtract_result,
    to_8_bits,
    to_16_bits,
)
from services.vision_restoration.image_io import Format, PictureFile, read_image, write_image
from services.vision_restoration.metrics import psnr, ssim
from services.vision_restoration.tiled_inference import CONTEXT, TilePlan, plan_tiles, restore_by_tiles
from services.vision_restoration.variant import Variant
from services.vision_restoration.variant_engines import TimedEngine, VariantEngines, measure_pace
from services.vision_restoration.weights_loading import WHOLE, build_artifacts, load_weights
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext, Card, LoadContext
from shared.registry.weights import Weights
from shared.telemetry import stage
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds, decode_bounds
from shared.vision.servable import DataConfig, Stopwatch, VisionItem, VisionServable


@dataclass(slots=True, kw_only=True)
class _Photograph(VisionItem[RestoreIn]):
    """A picture whose tiles are planned, and what became of it.

    Attributes:
        restored: The network's answer, in 0..1.
        result: The same in the bits per channel of the answer.
    """

    picture: PictureFile
    variant: Variant
    plan: TilePlan
    estimate: Estimate
    form: Format
    restored: np.ndarray | None = field(default=None, init=False)
    result: np.ndarray | None = field(default=None, init=False)

    @property
    def bit_depth(self) -> int:
        """Bits per channel of the result: 16 where the file had them and the format has them, or as asked for."""
        if self.request.bit_depth != "same":
            return int(self.request.bit_depth)
        return 16 if self.picture.pixels.dtype == np.uint16 and self.form == "png" else 8


class Restorer(VisionServable[RestoreIn, RestoreOut, _Photograph]):
    """Restores pictures with one network in two variants; the other variant's graph is opened when first asked for."""

    In: ClassVar[type[BaseModel]] = RestoreIn
    Out: ClassVar[type[BaseModel]] = RestoreOut
    weights: ClassVar[str] = WHOLE
    folder: ClassVar[Path] = Path(__file__).parent / "weights"
    sample: ClassVar[Path] = Path(__file__).parent / "models" / "example.jpg"
    forms: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg", "image/webp")
    one_at_a_time: ClassVar[bool] = True

    def __init__(self, card: Card, engines: VariantEngines, bounds: DecodeBounds) -> None:
        super().__init__(card, engines.open(engines.default).engine, bounds=bounds)
        self.engines = engines

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        """Verify the weights and open the engine that `context` wants, for the variant that they were trained as.

        Raises NotReady: weights are missing or not what their manifest says, or the engine can't run here.
        """
        engines = VariantEngines(cls.card.name, load_weights(cls.folder, context.weights, cls.weights), context)
        return cls(engines.describe(cls.card), engines, decode_bounds(cls.card, context))

    @classmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        return build_artifacts(weights, weights.manifest.network.config.get("variant", "released"), cache)

    @classmethod
    def all_artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> tuple[ExportedForms, ...]:
        return tuple(build_artifacts(weights, variant, cache) for variant in get_args(Variant))

    def details(self) -> dict[str, Any]:
        sides = {"tile_core": "as large as memory_mib allows", "tile_context": CONTEXT[self.engines.default]}
        return {"defaults": {"variant": self.engines.default, **sides}}

    def close(self) -> None:
        self.engines.close()

    def read(self, request: RestoreIn, watch: Stopwatch, run: CallContext) -> _Photograph:
        """Read the picture and plan its tiles.

        Raises InvalidOption: the result has no such form, or no tile fits into the memory allowed.
        """
        picture = self._read_image(request.image, "image")
        variant = request.variant or self.engines.default
        timed = self.engines.open(variant)
        size = working_size(picture.pixels.shape[0], picture.pixels.shape[1], request.resolution)
        plan = plan_tiles(*size, variant, request, timed.bytes_per_pixel)
        form = _format(request.format if request.format != "same" else picture.format)
        if request.bit_depth == "16" and form != "png":
            raise InvalidOption(f"A {form} has no 16 bits.", hint="Ask for format=png.", field="bit_depth")
        item = _Photograph(
            request=request,
            watch=watch,
            notes=[*picture.notes, *self._variant_notes(variant), *_size_notes(picture.pixels.shape[:2], size)],
            picture=picture,
            variant=variant,
            plan=plan,
            estimate=plan.estimate(timed.pace, timed.bytes_per_pixel, picture.pixels.nbytes),
            form=form,
        )
        watch.lap("decode")
        return item

    def _read_image(self, data: bytes, name: str) -> PictureFile:
        with in_field(name):
            return read_image(data, self.bounds)

    def _variant_notes(self, variant: Variant) -> list[str]:
        told = f"The weights were trained as {self.engines.default}; {variant} is not what they learnt."
        return [told] if variant != self.engines.default else []

    def infer(self, items: Sequence[_Photograph], run: CallContext) -> None:
        """Restore each picture tile by tile, unless only an estimate is asked for.

        Raises DeadlineExceeded: it would take longer than the caller waits, or did.
        """
        for item in items:
            if not item.request.dry_run or run.media in self.forms:
                _require_time(item, self.engines.open(item.variant), run)
                self._restore(item, run)

    def _restore(self, item: _Photograph, run: CallContext) -> None:
        def report(done: int) -> None:
            run.progress(done / item.plan.tiles, f"tile {done} of {item.plan.tiles}")

        pixels, size, timed = item.picture.pixels, (item.plan.height, item.plan.width), self.engines.open(item.variant)
        is_whole = pixels.shape[:2] == size
        with stage("run"):
            copy = pixels if is_whole else shrink(pixels, size)
            begun = time.perf_counter()
            restored = restore_by_tiles(timed.engine, copy, item.plan, run, report)
            timed.pace = (time.perf_counter() - begun) / item.plan.area
            item.restored = restored if is_whole else carry_over(pixels, copy, restored)

    def postprocess(self, item: _Photograph) -> RestoreOut:
        height, width = item.picture.pixels.shape[:2]
        made = {} if item.restored is None else self._made(item, item.restored)
        item.restored = None  # four bytes for each sample, which nobody needs any more
        item.watch.lap("encode")
        return RestoreOut(
            **self.facts(item),
            variant=item.variant,
            width=width,
            height=height,
            format=item.form,
            bit_depth=item.bit_depth,
            estimate=item.estimate,
            **made,
        )

    def _made(self, item: _Photograph, pixels: np.ndarray) -> dict[str, object]:
        """The pictures and numbers that were asked for."""
        given, request = item.picture, item.request
        made: dict[str, object] = {"mean_change": round(mean_change(given.pixels, pixels), 6)}
        item.result = to_16_bits(pixels) if item.bit_depth == 16 else to_8_bits(pixels)
        if "restored" in request.include:
            made["restored"] = write_image(replace(given, pixels=item.result), item.form, request.quality)
        if "reflection" in request.include:
            made["reflection"] = encode(to_8_bits(subtract_result(given.pixels, pixels)))
        if "comparison" in request.include:
            made["comparison"] = encode(compare_side_by_side(given.pixels, pixels), "image/jpeg")
        if request.reference is not None:
            wanted = to_8_bits(self._read_image(request.reference, "reference").pixels)
            made |= {"likeness": _likeness(pixels, wanted), "input_likeness": _likeness(given.pixels, wanted)}
        return made

    def draw(self, item: _Photograph, answer: RestoreOut, media_type: str) -> bytes | None:
        form, request, given = _format(media_type.removeprefix("image/")), item.request, item.picture
        result = cast("np.ndarray", item.result)
        if request.shown == "restored":
            if answer.restored is not None and answer.format == form:
                return answer.restored
            pixels = result if form == "png" else to_8_bits(result)
            return write_image(replace(given, pixels=pixels), form, request.quality)
        draw = subtract_result if request.shown == "reflection" else compare_side_by_side
        return encode(draw(to_8_bits(given.pixels), to_8_bits(result)), media_type, quality=request.quality)


def _format(wanted: str) -> Format:
    """The format of that name; PNG for one that is only read."""
    return "jpeg" if wanted == "jpeg" else "webp" if wanted == "webp" else "png"


def _size_notes(whole: tuple[int, ...], worked: tuple[int, int]) -> list[str]:
    copy = f"{worked[1]}×{worked[0]} pixels"
    told = f"Reflections were looked for in a copy of {copy}; resolution=full looks at every pixel, and takes longer."
    return [told] if whole != worked else []


def _require_time(item: _Photograph, timed: TimedEngine, run: CallContext) -> None:
    """Refuse what can't end before the caller's deadline. Raises DeadlineExceeded: it would take longer."""
    left = math.inf if run.deadline is None else run.deadline - time.monotonic()
    if item.estimate.seconds > left:  # by the pace of a moment when others computed, perhaps
        timed.pace = measure_pace(timed.engine)
        item.estimate = item.plan.estimate(timed.pace, timed.bytes_per_pixel, item.picture.pixels.nbytes)
    if (estimate := item.estimate).seconds > left:
        raise DeadlineExceeded(
            f"{estimate.tiles} tiles take about {timedelta(seconds=round(estimate.seconds))} (h:mm:ss), more than "
            "the request may.",
            hint="Send it with `Prefer: respond-async`: it then runs as a job, with progress.",
        )


def _likeness(pixels: np.ndarray, reference: np.ndarray) -> ImageSimilarity:
    """How like a reference of 8 bits a picture is. Raises InvalidOption: they differ in size."""
    if pixels.shape != reference.shape:
        (height, width), (high, wide) = pixels.shape[:2], reference.shape[:2]
        detail = f"The reference is {wide}×{high} pixels, the picture {width}×{height}."
        raise InvalidOption(detail, hint="Crop one to the other.", field="reference")
    found = psnr(to_8_bits(pixels), reference)
    small = min(pixels.shape[:2]) < 11
    return ImageSimilarity(
        psnr=None if math.isinf(found) else round(found, 3),
        ssim=None if small else round(ssim(to_8_bits(pixels), reference), 5),
    )
