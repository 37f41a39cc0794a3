"""A pane of glass as light sees it: ghosting, defocus, tint, a veil, patches, saturation, and a camera's own traces.

Knows float pictures (h, w, 3) in 0..1; knows nothing about where they come from. It goes beyond the paper's formulas,
which are in `synthesis`: real panes reflect twice, in places, in a colour of their own, and cameras clip what is added.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import shift

Pixels = NDArray[np.float32]

_GAMMA = 2.2


def behind_glass(scene: Pixels, reflection: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A camera's view of a scene behind a pane, and the scene through the same pane without the reflection.

    Light adds up in linear intensities: I = t·T + m·k*(R) + v, with T the scene, R what is before the pane, t the tint
    of the glass, m where and how strongly it reflects, k the two surfaces and the defocus, v a veil of scattered light.
    """
    tint = rng.uniform(0.9, 1.0) * rng.uniform(0.96, 1.0, 3)
    through = (scene**_GAMMA * tint).astype(np.float32)
    mirrored = reflection**_GAMMA * rng.uniform(0.75, 1.0, 3)
    seen = _defocused(_ghosted(mirrored.astype(np.float32), rng), rng)
    # Mostly little of the light before the pane comes back, sometimes as much as comes through.
    strength = (
        np.float32(np.exp(rng.uniform(np.log(0.04), np.log(0.8))))
        * _patches(scene.shape[0], scene.shape[1], rng)[..., None]
    )
    light = through + strength * seen + _veil(scene.shape[0], scene.shape[1], rng)
    mixed, clean = (np.asarray(np.clip(x, 0, 1) ** (1 / _GAMMA), np.float32) for x in (light, through))
    return _as_stored(mixed, rng), clean


def _ghosted(light: Pixels, rng: np.random.Generator) -> Pixels:
    """The two surfaces of a pane give two images, some pixels apart, the second one weaker."""
    if rng.random() < 0.4:
        return light
    distance, turn, share = rng.uniform(1, 9), rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.9)
    second = shift(light, (distance * np.sin(turn), distance * np.cos(turn), 0), order=1, mode="nearest")
    return np.asarray((light + share * second) / (1 + share), np.float32)


def _defocused(light: Pixels, rng: np.random.Generator) -> Pixels:
    """A camera focuses on what is behind the glass; a third of the reflections is as sharp nevertheless."""
    if rng.random() < 0.3:
        return light
    return np.asarray(cv2.GaussianBlur(light, (0, 0), rng.uniform(0.6, 6)), np.float32)


def _patches(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Where the pane reflects, 0 to 1: all over, or where something bright or dark stands before it."""
    if rng.random() < 0.35:
        return np.ones((height, width), np.float32)
    coarse = rng.random((int(rng.integers(2, 6)), int(rng.integers(2, 6)))).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    steep = rng.uniform(2, 10)
    return np.asarray(1 / (1 + np.exp(-steep * (field - rng.uniform(0.3, 0.7)))), np.float32)


def _veil(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Light that the glass scatters: smooth, nearly grey, often none."""
    if rng.random() < 0.6:
        return np.zeros((1, 1, 3), np.float32)
    field = cv2.resize(rng.random((2, 2)).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(field[..., None] * rng.uniform(0.005, 0.08) * rng.uniform(0.85, 1, 3), np.float32)


def _as_stored(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """With a camera's noise, and as a JPEG in half of the cases."""
    noisy = picture + rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.008))
    pixels = np.clip(noisy * 255, 0, 255).round().astype(np.uint8)
    if rng.random() < 0.5:
        _, packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 97))])
        pixels = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(pixels, np.float32) / np.float32(255)
