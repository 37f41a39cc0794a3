"""Synthetic reflections: two pictures become what a camera sees through glass, by the formulas A, B and C of the spec.

Knows float pictures (h, w, 3) in 0..1; knows nothing about where they come from. Every formula returns the mixture and
the scene behind the glass as it is to be found again.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.float32]
Mixed = tuple[Pixels, Pixels]
"""The mixture, and the scene alone."""

_SIZES, _ODDS = (5, 7, 9, 11), (0.1, 0.2, 0.3, 0.4)


def blend_by_sum(scene: Pixels, reflection: Pixels) -> Mixed:
    """A: the sum; where it is too bright, the reflection first gives way by 1.3 times the mean excess."""
    mixture = scene + reflection
    if (over := mixture[mixture > 1]).size:
        reflection = (reflection - np.float32(1.3 * (over.mean() - 1))).clip(0, 1)
        mixture = (scene + reflection).clip(0, 1)
    return mixture, scene


def blend_by_screen(scene: Pixels, reflection: Pixels) -> Mixed:
    """The screen blend T + R - T·R: bright scenes hide reflections."""
    return scene + reflection - scene * reflection, scene


def blend_varied(scene: Pixels, reflection: Pixels, rng: np.random.Generator) -> Mixed:
    """C: a blurred reflection, both dimmed, screened in seven of ten cases and added in the others."""
    size = int(rng.choice(_SIZES, p=_ODDS))
    reflection = blur(reflection, rng.uniform(2, 5), size // 2)
    scene, reflection = scene * np.float32(rng.uniform(0.8, 1)), reflection * np.float32(rng.uniform(0.4, 1))
    return blend_by_screen(scene, reflection) if rng.random() < 0.7 else blend_by_sum(scene, reflection)


def blend_defocused(scene: Pixels, reflection: Pixels, rng: np.random.Generator) -> Mixed:
    """B: as light adds up: in linear intensities, the reflection out of focus and brightest in the middle."""
    behind, before = scene**2.2, reflection**2.2
    sigma = float(rng.choice(np.linspace(1, 5, 80)))
    before = blur(before, sigma, int(np.ceil(2 * sigma)))
    total = behind + before
    for channel in range(3):
        over = total[..., channel][total[..., channel] > 1]
        excess = max(1.0, float(over.mean()) if over.size else 1.0) - 1
        before[..., channel] -= excess * rng.uniform(1.08, 1.18)
    before = before.clip(0, 1) * _vignette(scene.shape[0], scene.shape[1], rng)[..., None]
    mixture = (before + np.float32(rng.uniform(0.8, 1)) * behind).clip(0, 1) ** (1 / 2.2)
    return mixture.astype(np.float32), scene


def blur(picture: Pixels, sigma: float, radius: int) -> Pixels:
    """A Gaussian blur, cut off at `radius` pixels, channel by channel."""
    return np.asarray(gaussian_filter(picture, (sigma, sigma, 0), radius=(radius, radius, 0)), dtype=np.float32)


def _vignette(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """A crop of a Gaussian hill that falls by 3 σ to its edges; the hill is 2.5 times as long as the picture.

    The original is 560 pixels for crops of 224.
    """
    side = round(2.5 * max(height, width))
    hill = np.exp(-0.5 * np.linspace(-3, 3, side) ** 2).astype(np.float32)
    top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
    return np.outer(hill[top : top + height], hill[left : left + width])
