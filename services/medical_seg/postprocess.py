"""From a logit map to an answer: probabilities at the picture's size, the mask, its components and their forms.

Knows arrays and the wire type; knows no network and no engine. Memory: three bytes per pixel of the picture next to its
labels, however the map was made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.api.mask import Component, Contour, Form, RunLengths, SegmentIn
from fovea.errors import TooLarge
from services.medical_seg.preprocess import upsample_in_strips
from shared.vision.draw import encode, outline_mask, tint_mask
from shared.vision.mask_regions import (
    Region,
    count_corners,
    encode_run_lengths,
    find_regions,
    keep_regions,
    trace_outlines,
)

MAX_COMPONENTS = 100
"""Components that an answer lists; a mask of noise has tens of thousands."""

MAX_CORNERS = 250_000
"""Corners that the contours of an answer may have together: some 4 MB of JSON."""

BYTES_PER_PIXEL = 12
"""Memory of one answer: mask, probabilities, labels, and copies of them while forms are encoded."""

Check = Callable[[], None]
"""Raises when the request was cancelled or is too late; called between steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Findings of the map of a picture.

    Attributes:
        mask: (h, w) bool, after dropping components.
        shades: Probabilities (h, w) as uint8, 255 for 1.
        labels: Component number per pixel (h, w); dropped ones too.
        components: Kept components, largest first.
        peak: Largest probability.
    """

    mask: np.ndarray
    shades: np.ndarray
    labels: np.ndarray
    components: list[Region]
    peak: float


def extract_mask(
    logits: np.ndarray, height: int, width: int, request: SegmentIn, check: Check = lambda: None
) -> Segmentation:
    """Enlarge a map (s, s) of raw logits to the picture, and decide which pixels belong to the mask."""
    mask, shades = np.empty((height, width), bool), np.empty((height, width), np.uint8)
    peak = 0.0
    for rows, probability in _probabilities(logits, height, width, stretch=request.normalise == "minmax"):
        check()
        mask[rows] = probability >= np.float32(request.threshold)
        peak = max(peak, float(probability.max()))
        shades[rows] = np.rint(np.multiply(probability, 255, out=probability), out=probability)
    check()
    found, labels = find_regions(mask)
    check()
    kept = [region for region in found if _counts(region, labels, shades, request)]
    kept = kept[: 1 if request.keep_largest else None]
    if len(kept) < len(found):
        mask = keep_regions(labels, kept)
    return Segmentation(mask, shades, labels, kept, peak)


def _counts(region: Region, labels: np.ndarray, shades: np.ndarray, request: SegmentIn) -> bool:
    """Whether a component is large enough, and sure enough somewhere."""
    if region.area < request.min_area:
        return False
    least = round(255 * (request.min_peak or 0.0))
    if not least:
        return True
    place = region.rows, region.columns
    return bool(shades[place][labels[place] == region.label].max() >= least)


def _probabilities(logits: np.ndarray, height: int, width: int, *, stretch: bool) -> Iterator[tuple[slice, np.ndarray]]:
    """Sigmoid of the enlarged map, band by band; `stretch` maps its range over the whole picture to 0..1."""
    low, span = 0.0, 1.0
    if stretch:
        ends = [(part.min(), part.max()) for _, part in upsample_in_strips(logits, height, width)]
        low, high = _sigmoid(np.array([min(e[0] for e in ends), max(e[1] for e in ends)], np.float32)).tolist()
        span = high - low + 1e-8
    for rows, part in upsample_in_strips(logits, height, width):
        probability = _sigmoid(part)
        if stretch:
            probability -= np.float32(low)
            probability /= np.float32(span)
        yield rows, probability


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1/(1 + exp(-x)) in float32, without overflow: beyond ±80 it is 0 or 1 to the last bit."""
    y = np.clip(x, -80, 80)
    np.negative(y, out=y)
    np.exp(y, out=y)
    y += 1
    return np.asarray(np.reciprocal(y, out=y))


def measure(found: Segmentation) -> dict[str, Any]:
    """The fields of an answer that are always there."""
    height, width = found.mask.shape
    area = sum(region.area for region in found.components)
    return {
        "width": width,
        "height": height,
        "empty": area == 0,
        "area": area,
        "area_percent": round(100 * area / (height * width), 4),
        "max_probability": round(found.peak, 6),
        "mean_probability": _mean(found.shades[found.mask]),
        "components": [_component(found, region) for region in found.components[:MAX_COMPONENTS]],
        "component_count": len(found.components),
    }


def _component(found: Segmentation, region: Region) -> Component:
    inside = found.labels[region.rows, region.columns] == region.label
    x = inside.sum(axis=0) @ np.arange(inside.shape[1]) / region.area + region.box[0] + 0.5
    y = inside.sum(axis=1) @ np.arange(inside.shape[0]) / region.area + region.box[1] + 0.5
    shades = found.shades[region.rows, region.columns][inside]
    centre = (round(float(x), 2), round(float(y), 2))
    return Component(box=region.box, area=region.area, centre=centre, probability=_mean(shades))


def _mean(shades: np.ndarray) -> float:
    """Mean probability of 8-bit shades; 0 for none."""
    return round(float(shades.mean()) / 255, 6) if shades.size else 0.0


def encode_forms(found: Segmentation, request: SegmentIn, check: Check = lambda: None) -> dict[str, Any]:
    """The forms that the request includes, but for the overlay, which needs the picture."""
    encoders: dict[Form, Callable[[], Any]] = {
        "mask": lambda: encode(found.mask.view(np.uint8) * np.uint8(255)),
        "probability": lambda: encode(found.shades),
        "rle": lambda: RunLengths(size=found.mask.shape, counts=encode_run_lengths(found.mask)),
        "contours": lambda: _contours(found),
    }
    made: dict[str, Any] = {}
    for form, encoder in encoders.items():
        if form in request.include:
            check()
            made[form] = encoder()
    return made


def _contours(found: Segmentation) -> list[Contour]:
    """Contours of the listed components. Raises TooLarge: they have more corners than an answer holds."""
    listed = found.components[:MAX_COMPONENTS]
    mask = found.mask if len(listed) == len(found.components) else keep_regions(found.labels, listed)
    if (corners := count_corners(mask)) > MAX_CORNERS:
        detail = f"The contours of this mask have {corners:,} corners; an answer holds {MAX_CORNERS:,}."
        raise TooLarge(detail, hint="Ask for include=mask or include=rle, or for keep_largest.", field="include")
    return [Contour(points=outline.points.tolist(), hole=outline.hole) for outline in trace_outlines(mask)]


def draw_mask(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with its mask tinted and outlined; the line grows with the picture."""
    width = max(1, round(max(mask.shape) / 400))
    return outline_mask(tint_mask(pixels, mask), mask, width=width)
