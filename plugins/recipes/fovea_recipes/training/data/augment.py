"""Random changes of a picture and its labels: geometry as one affine map, then colour, blur, noise and compression.

Knows pixels, masks and boxes; knows no model. Everything is drawn from the generator that the caller passes.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

LARGEST_WARPED, LARGEST_JPEG = 32_766, 65_500
"""Most pixels of a side with which OpenCV does either."""

Warp = NDArray[np.float64]
"""An affine map (2, 3) from pixel coordinates of the source to those of the target."""

Pixels = NDArray[np.uint8]
Span = tuple[float, float]


class Augment(BaseModel, frozen=True, extra="forbid"):
    """How much a picture may change; the defaults suit photographs that have no natural up."""

    flip_x: float = Field(0.5, ge=0, le=1, description="Chance of a mirror image, left to right.")
    flip_y: float = Field(0.5, ge=0, le=1, description="Chance of a mirror image, top to bottom.")
    turn: float = Field(180.0, ge=0, description="Largest rotation to either side, degrees.")
    quarters: bool = Field(False, description="Turn by a random multiple of 90 degrees instead: boxes stay tight.")
    zoom: Span = Field((0.75, 1.4), description="Smallest and largest magnification.")
    stretch: float = Field(0.15, ge=0, lt=1, description="Largest change of the aspect ratio, as a share.")
    shift: float = Field(0.1, ge=0, description="Largest shift along each axis, as a share of the side.")
    brightness: float = Field(0.2, ge=0, description="Largest change of brightness, as a share of full scale.")
    contrast: float = Field(0.25, ge=0, lt=1, description="Largest change of contrast, as a share.")
    gamma: float = Field(0.25, ge=0, lt=1, description="Largest change of the exponent of the tone curve.")
    saturation: float = Field(0.3, ge=0, le=1, description="Largest change of saturation, as a share.")
    hue: float = Field(6.0, ge=0, le=90, description="Largest rotation of hue, in steps of two degrees.")
    blur: float = Field(0.2, ge=0, le=1, description="Chance of a Gaussian blur (sigma up to 1.5 px).")
    noise: float = Field(0.2, ge=0, le=1, description="Chance of Gaussian noise (up to 8 grey levels).")
    compress: float = Field(0.2, ge=0, le=1, description="Chance of JPEG at quality 35 to 90.")

    def warp(
        self, rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int], *, keep_aspect: bool = False
    ) -> Warp:
        """Draw an affine map from a source (height, width) to a target (height, width).

        With `keep_aspect` the picture is first fitted into the target, instead of being squashed.
        """
        quarter = math.pi / 2 * int(rng.integers(4))
        angle = quarter if self.quarters else math.radians(rng.uniform(-self.turn, self.turn))
        zoom = math.exp(rng.uniform(math.log(self.zoom[0]), math.log(self.zoom[1])))
        aspect = math.exp(rng.uniform(-self.stretch, self.stretch) / 2)
        mirror_x = -1.0 if rng.random() < self.flip_x else 1.0
        mirror_y = -1.0 if rng.random() < self.flip_y else 1.0
        shift = rng.uniform(-self.shift, self.shift, size=2) * (target[1], target[0])
        fit_x, fit_y = target[1] / source[1], target[0] / source[0]
        if keep_aspect:
            fit_x = fit_y = min(fit_x, fit_y)
        turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        scaled = np.diag([zoom * aspect * mirror_x, zoom / aspect * mirror_y])
        linear = turned @ scaled @ np.diag([fit_x, fit_y])
        centre = np.array([source[1], source[0]]) / 2
        offset = np.array([target[1], target[0]]) / 2 + shift - linear @ centre
        return np.column_stack([linear, offset])

    def recolour(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Change tone, colour, sharpness, noise and compression of a picture (h, w, 3)."""
        pixels = _bytes(cv2.LUT(pixels, self._tone(rng)))
        if self.saturation or self.hue:
            pixels = self._tint(pixels, rng)
        if rng.random() < self.blur:
            pixels = _bytes(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.5)))
        if rng.random() < self.noise:
            grain = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 8)
            pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
        if rng.random() < self.compress and max(pixels.shape) <= LARGEST_JPEG:
            _, packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 91))])
            pixels = _bytes(cv2.imdecode(packed, cv2.IMREAD_COLOR))
        return np.ascontiguousarray(pixels)

    def _tone(self, rng: np.random.Generator) -> Pixels:
        """One curve for all 256 values: gamma, contrast around the middle, brightness."""
        values = (np.arange(256) / 255) ** math.exp(rng.uniform(-self.gamma, self.gamma))
        contrast = 1 + rng.uniform(-self.contrast, self.contrast)
        values = (values - 0.5) * contrast + 0.5 + rng.uniform(-self.brightness, self.brightness)
        return np.clip(values * 255, 0, 255).round().astype(np.uint8)

    def _tint(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        steps = np.arange(256)
        hue = ((steps + round(rng.uniform(-self.hue, self.hue))) % 180).astype(np.uint8)
        saturation = np.clip(steps * (1 + rng.uniform(-self.saturation, self.saturation)), 0, 255).astype(np.uint8)
        curves = np.stack([hue, saturation, steps.astype(np.uint8)], axis=-1)[None]
        return _bytes(cv2.cvtColor(cv2.LUT(hsv, curves), cv2.COLOR_HSV2RGB))


def warp_picture(pixels: Pixels, warp: Warp, target: tuple[int, int], grey: int | None = None) -> Pixels:
    """A picture (h, w, 3), or its soft mask (h, w), under a map; what lies outside is mirrored in, or grey."""
    size, (height, width) = (target[1], target[0]), pixels.shape[:2]
    if max(height, width) > LARGEST_WARPED:
        ratio = LARGEST_WARPED / max(height, width)
        small = (max(1, int(width * ratio)), max(1, int(height * ratio)))
        pixels = _bytes(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA))
        warp = warp @ np.diag([width / small[0], height / small[1], 1.0])
    if grey is None:
        return _bytes(cv2.warpAffine(pixels, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))
    return _bytes(cv2.warpAffine(pixels, warp, size, flags=cv2.INTER_LINEAR, borderValue=(grey, grey, grey)))


def warp_boxes(boxes: NDArray[np.float32], warp: Warp) -> NDArray[np.float32]:
    """Boxes (n, 4) as x1, y1, x2, y2: the upright boxes around their moved corners."""
    x1, y1, x2, y2 = boxes.T
    corners = np.stack([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])  # (4, 2, n)
    moved = np.einsum("ij,cjn->cin", warp[:, :2], corners) + warp[None, :, 2:]
    low, high = moved.min(axis=0), moved.max(axis=0)
    return np.asarray(np.concatenate([low, high]).T, np.float32)


def _bytes(pixels: object) -> Pixels:
    """An array from OpenCV, whose types are vague."""
    return np.asarray(pixels, np.uint8)
