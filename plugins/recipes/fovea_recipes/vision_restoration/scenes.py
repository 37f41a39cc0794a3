"""Procedural scenes: gradients, polygons, ellipses, strokes, checkers and 1/f texture, as sources next to photographs.

Knows how to draw one picture from a seed; knows nothing about reflections.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]


def scene(rng: np.random.Generator, size: int = 256) -> Pixels:
    """One scene (size, size, 3)."""
    picture = _ground(rng, size)
    image = Image.fromarray((picture * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 14))):
        _DRAWN[rng.integers(len(_DRAWN))](pen, rng, size)
    drawn = np.asarray(image, dtype=np.float32) / 255
    grain = _texture(rng, size)[..., None] * rng.uniform(0, 0.25) + rng.normal(0, rng.uniform(0, 0.02), drawn.shape)
    return np.asarray(((drawn + grain).clip(0, 1) * 255).round(), dtype=np.uint8)


def _ground(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A gradient between two colours in any direction, or checkers of the two."""
    first, second = _colour(rng) / 255, _colour(rng) / 255
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size
    turn = rng.uniform(0, 2 * np.pi)
    share = (rows - 0.5) * np.sin(turn) + (columns - 0.5) * np.cos(turn)
    if rng.random() < 0.25:
        cell = rng.integers(8, 48)
        share = ((rows * size // cell + columns * size // cell) % 2) - 0.5
    share = (share + 0.5).clip(0, 1)[..., None]
    return np.asarray(first + (second - first) * share, dtype=np.float32)


def _texture(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Noise whose amplitude falls with frequency, as in nature: mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / frequency ** rng.uniform(0.6, 1.4)
    noise = np.fft.irfft2(spectrum, (size, size))
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """Any colour, dark ones as likely as bright ones."""
    return np.asarray(rng.uniform(0, 255, 3) * rng.uniform(0.2, 1), dtype=np.float32)


def _ink(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in _colour(rng))
    return red, green, blue


def _polygon(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    centre, reach = rng.uniform(0, size, 2), rng.uniform(0.05, 0.4) * size
    corners = centre + rng.uniform(-reach, reach, (int(rng.integers(3, 7)), 2))
    pen.polygon([(float(x), float(y)) for x, y in corners], fill=_ink(rng))


def _ellipse(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    (x, y), (a, b) = rng.uniform(0, size, 2), rng.uniform(0.03, 0.3, 2) * size
    pen.ellipse((x - a, y - b, x + a, y + b), fill=_ink(rng))


def _strokes(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    """A line of something like writing."""
    (x, y), height, ink = rng.uniform(0, 0.7 * size, 2), rng.uniform(6, 22), _ink(rng)
    width = max(1, round(height / 7))
    for _ in range(int(rng.integers(3, 12))):
        bends = np.add(rng.uniform(0, height, (int(rng.integers(2, 5)), 2)), (x, y))
        pen.line([(float(u), float(v)) for u, v in bends], fill=ink, width=width)
        x += height * 1.1


def _bars(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    """Parallel bars: a fence, a shutter, a row of windows."""
    step, ink = int(rng.integers(6, 30)), _ink(rng)
    (left, top), (width, height) = rng.integers(0, size, 2), rng.integers(size // 8, size, 2)
    for at in range(left, left + width, step):
        pen.rectangle((at, top, at + max(1, step // 2), top + height), fill=ink)


_DRAWN = (_polygon, _ellipse, _strokes, _bars)
