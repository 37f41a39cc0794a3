"""From networks to scores on pairs: what the recipes of this service measure.

Knows 8-bit pairs and the metrics of the paper; the pairs without a reflection are scored apart, because the input
itself is their perfect answer.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fovea_recipes.training.recipe import predict_in_batches
from fovea_recipes.vision_restoration.pairs import ReflectionPairs
from services.vision_restoration.metrics import psnr, ssim

_MOST_DB = 60.0
"""Score of an equal picture."""

Picture = NDArray[np.uint8]


def tensor(pictures: Picture) -> Tensor:
    """Pictures (n, h, w, 3) in 8 bits as network input (n, 3, h, w) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 255


def restore_pairs(network: nn.Module, mixed: Picture, batch: int = 8) -> Picture:
    """Answers (n, h, w, 3), clipped and truncated to 8 bits as the paper saves them."""
    restored = predict_in_batches(network, mixed, tensor, batch)
    return np.asarray((restored.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy())


def score_pairs(restored: Picture, pairs: ReflectionPairs) -> dict[str, float]:
    """Mean PSNR and SSIM over pairs with a reflection, next to those of the input itself; and clean pairs apart."""
    found = np.array([_scores(*pair) for pair in zip(restored, pairs.clean, strict=True)])
    given = np.array([_scores(*pair) for pair in zip(pairs.mixed, pairs.clean, strict=True)])
    some = ~pairs.plain
    scores = {
        "psnr": found[some, 0].mean(),
        "ssim": found[some, 1].mean(),
        "psnr_identity": given[some, 0].mean(),
        "ssim_identity": given[some, 1].mean(),
        "psnr_gain": (found - given)[some, 0].mean(),
        "pairs": float(len(some)),
        "clean_pairs": float(pairs.plain.sum()),
    }
    if pairs.plain.any():
        scores["psnr_clean"] = found[pairs.plain, 0].mean()
    return {name: float(value) for name, value in scores.items()}


def gain_pairs(restored: Picture, pairs: ReflectionPairs) -> NDArray[np.float64]:
    """Gain in PSNR over the input, dB, of each pair with a reflection (m,)."""
    with_reflection = np.flatnonzero(~pairs.plain)
    gains = [
        min(psnr(restored[at], pairs.clean[at]), _MOST_DB) - min(psnr(pairs.mixed[at], pairs.clean[at]), _MOST_DB)
        for at in with_reflection
    ]
    return np.array(gains)


def gain_by_darkening(pairs: ReflectionPairs, levels: int) -> float:
    """Mean gain in PSNR, dB, of pictures that are only made darker by so many of 255 levels.

    Reflections add light, so this is what an answer must beat to have found one.
    """
    return float(gain_pairs(np.maximum(pairs.mixed, levels) - np.uint8(levels), pairs).mean())


def _scores(first: Picture, second: Picture) -> tuple[float, float]:
    return min(psnr(first, second), _MOST_DB), ssim(first, second)
