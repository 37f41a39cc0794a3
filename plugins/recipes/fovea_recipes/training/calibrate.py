"""Values chosen after a fit, for serving the weights: constants and familiar features.

Knows arrays of features; knows no network. A recipe gives the features and adds constants of its own, such as a
temperature, chosen on pictures that were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fovea_recipes.training.data.mask_folders import is_mask
from fovea_recipes.training.data.survey import list_pictures, unreadable
from fovea_recipes.training.novelty import auroc, cross_distances, drop_boundary, fit_boundaries, fit_gaussian
from fovea_recipes.training.score_calibration import reliability

Features = NDArray[np.float32]

INSIDE = 0.99
"""Share of new pictures of the same kind that are to pass without a warning."""


@dataclass(frozen=True, slots=True)
class ServingFacts:
    """Facts next to the weights: constants of post-processing, further tensors, metrics of both, notes for a figure."""

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


def fit_novelty_detector(
    known: Features,
    groups: NDArray[np.int64],
    held_out: Features,
    others: Mapping[str, Features],
    foreign: Mapping[str, Features] = MappingProxyType({}),
    strange: Sequence[Features] = (),
) -> ServingFacts:
    """Fit what known pictures look like, choose from what distance on to warn, and measure both.

    Args:
        known: Features (n, c) of training pictures and of altered copies.
        groups: Which of them belong together (n,), so that no copy is compared with its original.
        held_out: Features (m, c) of held-out pictures of the same kind.
        others: Features (k, c) of pictures of other kinds, by name: measured on.
        foreign: Features (k, c) of pictures of other kinds: every second one is fitted, the others are measured
            on. Separation of each kind by a detector fitted on the others alone is measured, too.
        strange: Features (k, c) of pictures of no kind, by the way they were made: used for fitting.
    """
    fitted, kinds = fit_gaussian(known), [*(features[::2] for features in foreign.values()), *strange]
    inside = 1 - (1 - INSIDE) / (1 + len(kinds))  # each of the reasons to warn has its share of false warnings
    reach = float(np.quantile(cross_distances(known, groups), inside))
    planes = fit_boundaries(known, groups, kinds, reach, inside) if kinds else None
    whole = fitted.beside(planes)
    near = whole.distance(held_out)
    metrics = {"false_warnings": float((near > reach).mean())}
    for name, features in (*others.items(), *((name, features[1::2]) for name, features in foreign.items())):
        far = whole.distance(features)
        metrics |= {f"auroc_{name}": auroc(near, far), f"warned_{name}": float((far > reach).mean())}
    for index, (name, features) in enumerate(foreign.items()):
        unlearnt = fitted.beside(planes and drop_boundary(planes, index))
        far = unlearnt.distance(features)
        metrics |= {
            f"auroc_unlearnt_{name}": auroc(unlearnt.distance(held_out), far),
            f"warned_unlearnt_{name}": float((far > reach).mean()),
        }
    return ServingFacts({"novelty": reach}, whole.arrays(), metrics)


def reliability_facts(raw: NDArray[Any], calibrated: NDArray[Any], hits: NDArray[Any]) -> ServingFacts:
    """Expected calibration error before and after, and the bins of a reliability figure, on held-out data."""
    (before, _), (after, bins) = reliability(raw, hits), reliability(calibrated, hits)
    figure = {
        "scores": [round(score, 4) for score, _, _ in bins],
        "right": [round(right, 4) for _, right, _ in bins],
        "counts": [count for _, _, count in bins],
    }
    return ServingFacts(
        metrics={"calibration_error": after, "calibration_error_raw": before}, notes={"reliability": figure}
    )


def sample_pictures(folder: Path, most: int, seed: int = 0) -> list[Path]:
    """Some pictures below a folder, but no masks (in own folders, or a PNG next to a JPEG) and no broken files."""
    paths = list_pictures(folder)
    photographs = {path.with_suffix("") for path in paths if path.suffix.lower() in {".jpg", ".jpeg"}}
    found = [
        path
        for path in paths
        if not is_mask(path, folder) and not (path.suffix.lower() == ".png" and path.with_suffix("") in photographs)
    ]
    order = np.random.default_rng(seed).permutation(len(found))[:most]
    return [found[index] for index in np.sort(order) if not unreadable([found[index]])]
