"""What is chosen after a fit, for those who serve the weights: constants and familiar features.

Knows arrays of features; knows no network. A recipe gives the features and adds constants of its own, such as a
temperature, chosen on pictures that were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.training.data.class_folders import SUFFIXES
from shared.training.data.mask_folders import MASKS
from shared.vision.calibration import reliability
from shared.vision.novelty import Familiar, auroc, cross_distances

__all__ = ["ServingFacts", "learn_familiar", "reliability_facts", "sample_pictures"]

Features = NDArray[np.float32]

INSIDE = 0.99
"""Share of new pictures of the same kind that are to pass without a warning."""


@dataclass(frozen=True, slots=True)
class ServingFacts:
    """Facts beside the weights.

    Attributes:
        constants: Of post-processing.
        arrays: Tensors that are not the network's.
        metrics: How well both do, on held-out pictures.
        notes: What a figure needs.
    """

    constants: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: ServingFacts) -> ServingFacts:
        """Both together."""
        return ServingFacts(
            self.constants | other.constants,
            self.arrays | other.arrays,
            self.metrics | other.metrics,
            self.notes | other.notes,
        )


def learn_familiar(
    known: Features, groups: NDArray[np.int64], held_out: Features, others: Mapping[str, Features]
) -> ServingFacts:
    """Fit what known pictures look like, choose from what distance on to warn, and measure both.

    Args:
        known: Features (n, c) of training pictures and of altered copies.
        groups: Which of them belong together (n,), so that no copy is compared with its original.
        held_out: Features (m, c) of held-out pictures of the same kind.
        others: Features (k, c) of pictures of other kinds, by name.
    """
    fitted = Familiar.fit(known)
    threshold = float(np.quantile(cross_distances(known, groups), INSIDE))
    near = fitted.distance(held_out)
    metrics = {"false_warnings": float((near > threshold).mean())}
    for name, features in others.items():
        far = fitted.distance(features)
        metrics |= {f"auroc_{name}": auroc(near, far), f"warned_{name}": float((far > threshold).mean())}
    return ServingFacts({"novelty": threshold}, fitted.arrays(), metrics)


def reliability_facts(raw: NDArray[Any], calibrated: NDArray[Any], hits: NDArray[Any]) -> ServingFacts:
    """Expected calibration error before and after, and the bins of a reliability figure, on held-out data."""
    before, after = reliability(raw, hits), reliability(calibrated, hits)
    bins = {
        "scores": [round(value, 4) for value in after.scores],
        "right": [round(value, 4) for value in after.right],
        "counts": list(after.counts),
    }
    return ServingFacts(
        metrics={"calibration_error": after.error, "calibration_error_raw": before.error}, notes={"reliability": bins}
    )


def sample_pictures(folder: Path, most: int, seed: int = 0) -> list[Path]:
    """Some pictures below a folder, masks left out."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not any(part.lower() in MASKS for part in path.parts)
    ]
    order = np.random.default_rng(seed).permutation(len(found))[:most]
    return [found[index] for index in np.sort(order)]
