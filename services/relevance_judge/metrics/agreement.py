"""Agreement of judges: kappa, alpha, confusion and bias, exactly. Undefined is None, never NaN and never 0.

Definitions after Cohen (1960, 1968) and Krippendorff (2011); conventions of the challenge (clamping, cuts, ordinal
alpha) after LLMJudge (2025).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

Weights = Literal["linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]
Qrels = Mapping[tuple[str, str], int]
Floats = NDArray[np.float64]

GRADES = (0, 1, 2, 3)
CUTS = {"0|123": 1, "01|23": 2, "012|3": 3}
"""Where the scale is cut in two: name → lowest grade of the upper side."""


def confusion(reference: Any, judge: Any, grades: Sequence[int] = GRADES) -> NDArray[np.int64]:
    """Counts [grades, grades] of pairs of grades; rows are the reference's; `ValueError` for one outside the scale."""
    first, second = np.asarray(reference), np.asarray(judge)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} labels against {second.size}.")
    scale = np.asarray(grades)
    if not (np.isin(first, scale).all() and np.isin(second, scale).all()):
        raise ValueError(f"A label lies outside the grades {list(grades)}.")
    table = np.zeros((scale.size, scale.size), np.int64)
    np.add.at(table, (np.searchsorted(scale, first), np.searchsorted(scale, second)), 1)
    return table


def cohen_kappa(a: Any, b: Any, *, weights: Weights | None = None, grades: Sequence[int] = GRADES) -> float | None:
    """Cohen's kappa of two equally long label lists: 1 − observed / expected disagreement.

    Without weights every disagreement counts alike; `linear` and `quadratic` weigh by the distance of the grades'
    values on the fixed, ascending scale, also when a grade does not occur. None for empty lists, and where no
    disagreement can be expected: both use one and the same grade only.
    """
    table = confusion(a, b, grades).astype(np.float64)
    total = table.sum()
    if not total:
        return None
    distance = np.abs(np.subtract.outer(np.asarray(grades, float), np.asarray(grades, float)))
    weight = {None: (distance > 0).astype(float), "linear": distance, "quadratic": distance**2}[weights]
    expected = np.outer(table.sum(1), table.sum(0)) / total
    disagreement = float((weight * expected).sum())
    return None if disagreement == 0 else 1.0 - float((weight * table).sum()) / disagreement


def krippendorff_alpha(ratings: Any, *, level: Level = "ordinal", grades: Sequence[int] = GRADES) -> float | None:
    """Krippendorff's alpha of any number of raters with gaps: 1 − observed / expected disagreement.

    Ratings are [raters, units], None or NaN where a rater gave none; units with one rating are dropped. Two grades are
    apart by `nominal` all alike, `interval` their squared distance, `ordinal` the squared number of ratings between
    them. None where a single grade occurs, or nothing can be paired.
    """
    counts = _counts(ratings, grades)
    counts = counts[counts.sum(1) >= 2]
    pairable = counts.sum(1)
    if not len(counts):
        return None
    coincidence = (counts / (pairable - 1)[:, None]).T @ counts - np.diag((counts / (pairable - 1)[:, None]).sum(0))
    margin = coincidence.sum(1)
    distance = _distance(level, margin, np.asarray(grades, float))
    expected = float((np.outer(margin, margin) * distance).sum())
    if expected == 0:
        return None
    return 1.0 - (float(margin.sum()) - 1.0) * float((coincidence * distance).sum()) / expected


def _counts(ratings: Any, grades: Sequence[int]) -> Floats:
    """[units, grades]: how many raters gave each grade."""
    rows = np.asarray([[np.nan if r is None else float(r) for r in rater] for rater in ratings], np.float64)
    if rows.ndim != 2:
        raise ValueError("Ratings must be raters × units, all raters of one length.")
    scale = np.asarray(grades, float)
    if not np.isin(rows[~np.isnan(rows)], scale).all():
        raise ValueError(f"A label lies outside the grades {list(grades)}.")
    counts: Floats = (rows[:, :, None] == scale).sum(0).astype(np.float64)
    return counts


def _distance(level: Level, margin: Floats, values: Floats) -> Floats:
    if level == "nominal":
        return 1.0 - np.eye(values.size)
    if level == "interval":
        return np.asarray(np.subtract.outer(values, values) ** 2)
    # Ratings at or below each grade, counting half of its own: the difference is the sum of those in between.
    middle = np.cumsum(margin) - margin / 2
    return np.asarray(np.subtract.outer(middle, middle) ** 2)


class Agreement(BaseModel):
    """A judge against a reference on the pairs that both labelled; null is undefined."""

    pairs: int
    missing: int = Field(description="Pairs of the reference that the judge lacks.")
    extra: int = Field(description="Pairs of the judge that the reference lacks.")
    clamped: int = Field(description="Labels of the judge that were moved onto the scale.")
    clamped_reference: int = Field(description="Labels of the reference that were.")
    kappa: float | None
    alpha: float | None = Field(description="Krippendorff's, ordinal.")
    kappa_linear: float | None
    kappa_quadratic: float | None
    kappa_by_cut: dict[str, float | None]
    alpha_by_cut: dict[str, float | None]
    confusion: list[list[int]] = Field(description="Rows are the reference's grades.")
    counts: list[int] = Field(description="The judge's labels per grade, after clamping.")
    bias: float | None = Field(description="Mean of judge − reference.")
    mae: float | None = Field(description="Mean of its absolute form.")
    bias_by_grade: list[float | None] = Field(description="Per reference grade.")
    kappa_by_query: dict[str, float | None]


def agree(reference: Qrels, judge: Qrels) -> Agreement:
    """Compare a judge's labels with reference labels, {(query, passage): grade}; those outside 0–3 are clamped."""
    shared = [pair for pair in reference if pair in judge]
    raw = np.asarray([[side[pair] for pair in shared] for side in (reference, judge)], int)
    a, b = np.clip(raw, GRADES[0], GRADES[-1])
    table = confusion(a, b)
    difference = (b - a).astype(float)
    halves = {name: ((a >= low).astype(int), (b >= low).astype(int)) for name, low in CUTS.items()}
    return Agreement(
        pairs=len(shared),
        missing=len(reference) - len(shared),
        extra=sum(pair not in reference for pair in judge),
        clamped=int((raw[1] != b).sum()),
        clamped_reference=int((raw[0] != a).sum()),
        kappa=cohen_kappa(a, b),
        alpha=krippendorff_alpha([a, b]),
        kappa_linear=cohen_kappa(a, b, weights="linear"),
        kappa_quadratic=cohen_kappa(a, b, weights="quadratic"),
        kappa_by_cut={name: cohen_kappa(*half, grades=(0, 1)) for name, half in halves.items()},
        alpha_by_cut={name: krippendorff_alpha(half, grades=(0, 1)) for name, half in halves.items()},
        confusion=table.tolist(),
        counts=table.sum(0).tolist(),
        bias=_mean(difference),
        mae=_mean(np.abs(difference)),
        bias_by_grade=[_mean(difference[a == grade]) for grade in GRADES],
        kappa_by_query=_by_query(shared, a, b),
    )


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _by_query(pairs: Sequence[tuple[str, str]], a: NDArray[Any], b: NDArray[Any]) -> dict[str, float | None]:
    rows: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        rows.setdefault(query, []).append(index)
    return {query: cohen_kappa(a[index], b[index]) for query, index in rows.items()}
