"""Synthetic endoscopy frames with polyps, drawn from a seed: data for the demo weights, without any patient.

Knows how mucosa, polyps, folds, bubbles and an endoscope's vignette look, roughly; knows nothing about training.
Frame `index` of a split depends on nothing but (seed, split, index), so any part can be drawn alone and in any order.
"""

import colorsys
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.float32]

MUCOSA = np.array((0.75, 0.40, 0.35), dtype=np.float32)
OCTAVES = ((80, 0.12), (40, 0.06), (20, 0.03))
"""Cell in pixels and amplitude of each octave of smooth noise."""


def draw_frame(rng: np.random.Generator, index: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One frame and its mask, see `Draw`: mucosa, polyps in nine of ten, distractors, vignette, sensor noise and JPEG.

    The mask ends where the vignette does: what is black can't be seen to be a polyp.
    """
    texture = _texture(rng, size)
    picture = _mucosa(rng, texture, size)
    mask = np.zeros((size, size), dtype=np.bool_)
    if index % 10 != 9:
        for _ in range(2 if rng.random() < 0.2 else 1):
            mask |= _polyp(rng, picture, texture)
    if rng.random() < 0.4:
        _distract(rng, picture)
    if rng.random() < 0.5:
        seen = _distance(size, (size - 1) / 2, (size - 1) / 2) <= 0.62 * size
        picture *= seen[..., None]
        mask &= seen
    picture += rng.normal(0, 0.02, picture.shape)
    return _jpeg(picture, quality=int(rng.integers(60, 96))), mask[None]


def _texture(rng: np.random.Generator, size: int) -> Pixels:
    """Three octaves of smooth noise (h, w, 3), stronger in red: blood under the surface."""
    noise = sum(amplitude * _smooth_noise(rng, size, cell) for cell, amplitude in OCTAVES)
    return np.asarray(noise, dtype=np.float32)[..., None] * np.array((1.3, 1, 1), dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, size: int, cell: int) -> Pixels:
    """Uniform noise in -1..1 on a grid of `cell` pixels, at a random offset, interpolated bicubically."""
    cells = size // cell + 3
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    left, top = rng.uniform(0.5, 1.5, 2)
    box = (left, top, left + size / cell, top + size / cell)
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _mucosa(rng: np.random.Generator, texture: Pixels, size: int) -> Pixels:
    """The wall of the colon (h, w, 3): textured base colour, vessels, specular blobs."""
    picture = MUCOSA + texture
    vessels = Image.new("L", (size, size))
    for _ in range(rng.integers(3, 9)):
        path = _walk(rng, size)
        ImageDraw.Draw(vessels).line(path, fill=255, width=int(rng.integers(1, 3)))
    picture *= (1 - 0.25 * _alpha(vessels, sigma=0.5))[..., None]
    for _ in range(rng.integers(5, 21)):
        _highlight(rng, picture, *rng.uniform(0, size, 2))
    return picture


def _walk(rng: np.random.Generator, size: int) -> list[tuple[float, float]]:
    """A smooth random walk across the frame: steps of 3 pixels whose direction drifts."""
    steps = int(rng.integers(20, 60))
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.22, steps))
    path = rng.uniform(0, size, 2) + 3 * np.cumsum(np.stack((np.cos(turns), np.sin(turns)), axis=1), axis=0)
    return [(float(x), float(y)) for x, y in path]


def _highlight(rng: np.random.Generator, picture: Pixels, x: float, y: float) -> None:
    """Reflect the lamp: a white blob of 1 to 3 pixels radius, in place."""
    inside = _distance(len(picture), x, y) <= rng.uniform(1, 3)
    picture[inside] = 1


def _polyp(rng: np.random.Generator, picture: Pixels, texture: Pixels) -> NDArray[np.bool_]:
    """Draw one polyp in place and return its mask: a lit dome whose outline wobbles in four harmonics."""
    size = len(picture)
    x, y = rng.uniform(0.15 * size, 0.85 * size, 2)
    distance, angle = _distance(size, x, y), _angle(size, x, y)
    outline = np.ones_like(angle)
    for k in range(2, 6):
        outline += rng.uniform(0, 0.18 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    reach = distance / (rng.uniform(12, 38) * outline)
    mask: NDArray[np.bool_] = reach < 1
    shading = _dome(reach, angle, _light(rng))[..., None]
    alpha = gaussian_filter(mask.astype(np.float32), rng.uniform(0.8, 2.5))[..., None]
    picture += alpha * (shading * (_tint(rng) + texture) - picture)
    for _ in range(rng.integers(0, 3)):
        away, turn = rng.uniform(0, 8), rng.uniform(0, 2 * np.pi)
        _highlight(rng, picture, x + away * np.cos(turn), y + away * np.sin(turn))
    return mask


def _dome(reach: Pixels, angle: Pixels, light: NDArray[np.float64]) -> Pixels:
    """Lambert shading 0.55 + 0.45 n·l of the height sqrt(1 - reach²): its normal is (reach·cos, reach·sin, height)."""
    inside = np.minimum(reach, 1)
    height = np.sqrt(1 - inside**2)
    normal = np.stack((inside * np.cos(angle), inside * np.sin(angle), height), axis=-1)
    return np.asarray(0.55 + 0.45 * np.clip(normal @ light, 0, None), dtype=np.float32)


def _light(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random unit vector towards the lamp, at most 60 degrees from the camera."""
    tilt, turn = rng.uniform(0, np.pi / 3), rng.uniform(0, 2 * np.pi)
    return np.array((np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)))


def _tint(rng: np.random.Generator) -> Pixels:
    """The mucosa's colour with its hue shifted by up to 4 % and its saturation by up to 15 %."""
    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, MUCOSA))
    shifted = colorsys.hsv_to_rgb((hue + rng.uniform(-0.04, 0.04)) % 1, saturation * rng.uniform(0.85, 1.15), value)
    return np.array(shifted, dtype=np.float32)


def _distract(rng: np.random.Generator, picture: Pixels) -> None:
    """Draw what looks like an edge but is not a polyp, in place: a fold (dark band) or a bubble (bright ring)."""
    size = len(picture)
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.5:
        away, turn = rng.uniform(0.7, 1.6) * size, rng.uniform(0, 2 * np.pi)  # far enough to be a band, not a ring
        centre = (size / 2 + away * np.cos(turn), size / 2 + away * np.sin(turn))
        draw.circle(centre, away + rng.uniform(-0.3, 0.3) * size, outline=255, width=int(rng.integers(6, 15)))
        picture *= (1 - rng.uniform(0.3, 0.5) * _alpha(canvas, sigma=2))[..., None]
    else:
        x, y, radius = *rng.uniform(0, size, 2), rng.uniform(5, 16)
        draw.circle((x, y), radius, outline=255, width=int(rng.integers(1, 3)))
        picture += rng.uniform(0.4, 0.8) * _alpha(canvas, sigma=0.6)[..., None] * (0.95 - picture)


def _alpha(canvas: Image.Image, sigma: float) -> Pixels:
    """A drawn mask as opacity 0..1 (h, w) with soft edges."""
    return np.asarray(gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, sigma), dtype=np.float32)


def _distance(size: int, x: float, y: float) -> Pixels:
    """Distance in pixels of every pixel (h, w) from (x, y)."""
    rows, columns = np.ogrid[:size, :size]
    return np.hypot(columns - x, rows - y).astype(np.float32)


def _angle(size: int, x: float, y: float) -> Pixels:
    """Direction of every pixel (h, w) as seen from (x, y), radians."""
    rows, columns = np.ogrid[:size, :size]
    return np.arctan2(rows - y, columns - x).astype(np.float32)


def _jpeg(picture: Pixels, quality: int) -> NDArray[np.uint8]:
    """The picture that a frame grabber keeps: 8 bits, compressed and decompressed."""
    buffer = io.BytesIO()
    Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
