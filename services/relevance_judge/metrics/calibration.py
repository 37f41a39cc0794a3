"""Calibration: three cuts that turn a judge's signal into a grade, fitted on labelled pairs.

Evaluated by leaving whole queries out. A calibration is a versioned resource that belongs to one model, template and
scale; a judgement names the one it used.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.agreement import cohen_kappa
from services.relevance_judge.metrics.pair_order import number_queries, pair_order, spearman_rho

FitRule = Literal["quantile", "kappa"]

FEW_PAIRS, FEW_QUERIES = 20, 5
MAX_SIGNAL = 1e100
"""Beyond it means and spreads leave what a float holds."""

CANDIDATES, MAX_FOLDS = 64, 500
"""Most midpoints that the kappa search tries, evenly taken from all of them when there are more; and most fits of an
evaluation, which leaves several queries out together when there are more."""

Floats = NDArray[np.float64]


class Calibration(BaseModel):
    """Cuts of one signal, with where they come from.

    Attributes:
        cuts: c1 ≤ c2 ≤ c3; the grade is the number of cuts at or below the signal.
        how: Which rule fitted them.
        mean: Of the training signals; with `spread`, their standard deviation, it makes signals of several judges
            comparable.
        signal, model, template: Origin of the cuts, where that was stated; others are refused.
        training: Ids of the training pairs, `qid docid`.
        name, version: Under which it is stored; None where it is not.
        metrics: Leave-one-query-out: `kappa`, `kappa_quadratic`, `spearman`, `pair_order` (share of pairs of unequal
            grade within a query that the signal orders right); None where undefined.
        warnings: Why the cuts deserve little trust.
        digest: Names this calibration in every judgement made with it.
    """

    model_config = ConfigDict(frozen=True)

    cuts: tuple[float, float, float]
    how: FitRule
    pairs: int
    queries: int
    metrics: dict[str, float | None] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    signal: str | None = None
    model: str | None = None
    template: str | None = None
    mean: float | None = None
    spread: float | None = None
    training: tuple[str, ...] = ()
    name: str | None = None
    version: int | None = None

    def grade(self, signal: float) -> int:
        """The grade 0–3 of a signal; `InvalidOption` if the signal is not finite: its row is invalid, not 0."""
        if not math.isfinite(signal):
            raise InvalidOption("The signal is not a finite number, so the pair has no grade.", field="signal")
        return sum(cut <= signal for cut in self.cuts)

    @property
    def digest(self) -> str:
        """sha256 over the cuts and what they belong to, 16 hex digits."""
        facts = self.model_dump_json(exclude={"metrics", "warnings", "training", "name", "version"})
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @property
    def reference(self) -> str:
        """How a judgement names it: `name@version:digest` where it is stored, else its digest."""
        return self.digest if self.name is None else f"{self.name}@{self.version}:{self.digest}"

    def standardise(self, signal: float) -> float:
        """A signal in standard deviations of the training signals; `InvalidOption` without their mean and spread."""
        if self.mean is None or not self.spread:
            raise InvalidOption("The calibration does not state mean and spread of its signals.", field="calibration")
        return (signal - self.mean) / self.spread


def fit(signals: Any, grades: Any, queries: Sequence[Any], *, how: FitRule = "quantile") -> Calibration:
    """Fit cuts on labelled pairs: a finite signal, a grade 0–3 and a query each; evaluation leaves whole queries out.

    `quantile` puts the cuts at the cumulative label shares; `kappa` searches midpoints of the signal for the best
    quadratic kappa, ties to the lowest cuts. Raises InvalidOption for unequal lengths, no pairs, a label outside the
    scale, or a signal that is not finite.
    """
    x, y, q = np.asarray(signals, float), _to_grades(grades), number_queries(queries)
    if not len(x) == len(y) == len(q) or not len(x):
        raise InvalidOption(f"{len(x)} signals, {len(y)} grades and {len(q)} queries; one each is needed, and some.")
    if not (np.abs(x) <= MAX_SIGNAL).all() or not ((y >= 0) & (y <= 3)).all():
        detail = f"A signal is not finite or beyond ±{MAX_SIGNAL:g}, or a grade lies outside 0–3."
        raise InvalidOption(detail, hint="Leave invalid rows out.")
    count = len(set(q.tolist()))
    return Calibration(
        cuts=_cuts(x, y, how),
        how=how,
        pairs=len(x),
        queries=count,
        metrics=_leave_queries_out(x, y, q, how),
        warnings=_warnings(len(x), count),
        mean=float(x.mean()),
        spread=float(x.std()) if np.ptp(x) else 0.0,  # rounding gives a constant some spread
    )


def _to_grades(grades: Any) -> NDArray[np.int64]:
    """Grades as an array; a number that does not fit one is outside every scale."""
    try:
        return np.asarray(grades, np.int64)
    except OverflowError as error:
        raise InvalidOption("A grade lies outside 0–3.", hint="Leave invalid rows out.", field="grades") from error


def _warnings(pairs: int, queries: int) -> tuple[str, ...]:
    counts = ((f"{pairs} labelled pairs", pairs, FEW_PAIRS), (f"{queries} queries", queries, FEW_QUERIES))
    return tuple(f"Fitted on {what}; {least} are the least to trust." for what, n, least in counts if n < least)


def _cuts(x: Floats, y: NDArray[Any], how: FitRule) -> tuple[float, float, float]:
    return _by_quantile(x, y) if how == "quantile" else _by_kappa(x, y)


def _by_quantile(x: Floats, y: NDArray[Any]) -> tuple[float, float, float]:
    """Cut so that as many training pairs fall below each cut as have a lower label."""
    ordered = np.sort(x)
    edges = np.concatenate([[-np.inf], (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
    below = [int((y < grade).sum()) for grade in (1, 2, 3)]
    finite = np.nan_to_num(edges[below], posinf=float(x.max()) + 1.0, neginf=float(x.min()) - 1.0)
    return float(finite[0]), float(finite[1]), float(finite[2])


def _by_kappa(x: Floats, y: NDArray[Any]) -> tuple[float, float, float]:
    known = np.unique(x)
    points = np.concatenate([known[:1] - 1.0, (known[1:] + known[:-1]) / 2, known[-1:] + 1.0])
    if len(points) > CANDIDATES:
        points = points[np.linspace(0, len(points) - 1, CANDIDATES).round().astype(int)]
    # Labels [points, 4] at or above each point; a grade is how many cuts lie at or below a signal.
    above = np.stack([np.bincount(y[x >= point], minlength=4) for point in points]).astype(np.float64)
    (sizes, sums), cuts = (above @ np.asarray(((1.0, 0), (1, 1), (1, 2), (1, 3)))).T, _triples(len(points))
    odd, squares = np.asarray((1.0, 3.0, 5.0))[:, None], above[0] @ np.arange(4.0) ** 2  # k² is a sum of odd numbers
    expected = sizes[0] * squares + _add_up((sizes[0] * odd - 2 * sums[0]) * sizes, cuts)
    observed = sizes[0] * (squares + _add_up(odd * sizes - 2 * sums, cuts))
    kappas = np.where(expected > 0, 1.0 - observed / np.where(expected > 0, expected, 1.0), -np.inf)
    best = points[cuts[:, int(np.argmax(kappas))]]  # the first of equals has the lowest cuts
    return float(best[0]), float(best[1]), float(best[2])


def _add_up(terms: Floats, cuts: NDArray[np.int64]) -> Floats:
    """Sums [n] of the terms [3, points] of three cuts [3, n]."""
    return np.asarray(sum(row[places] for row, places in zip(terms, cuts, strict=True)))


@lru_cache(maxsize=4)
def _triples(count: int) -> NDArray[np.int64]:
    """All places [3, n] of three cuts among so many points, in order."""
    return np.array(list(itertools.combinations_with_replacement(range(count), 3))).T.copy()


def _leave_queries_out(x: Floats, y: NDArray[Any], q: NDArray[Any], how: FitRule) -> dict[str, float | None]:
    """Measures of grades whose cuts come from the other queries, and of the signal itself."""
    order = {"spearman": spearman_rho(x, y), "pair_order": pair_order(x, y, q)}
    if len(set(q.tolist())) < 2:
        return {"kappa": None, "kappa_quadratic": None, **order}
    graded = grade_across_queries(x, y, q, how=how)
    return {"kappa": cohen_kappa(y, graded), "kappa_quadratic": cohen_kappa(y, graded, weights="quadratic"), **order}


def grade_across_queries(signals: Any, grades: Any, queries: Any, *, how: FitRule = "quantile") -> NDArray[np.int64]:
    """Grade the pairs of each query, of two at least, with cuts fitted on all others; see `fit`."""
    x, y = np.asarray(signals, float), _to_grades(grades)
    found, folds = np.zeros(len(x), np.int64), number_queries(queries) % MAX_FOLDS
    for left_out in (folds == fold for fold in np.unique(folds)):
        cuts = np.asarray(_cuts(x[~left_out], y[~left_out], how))
        found[left_out] = (cuts[None, :] <= x[left_out][:, None]).sum(1)
    return found
