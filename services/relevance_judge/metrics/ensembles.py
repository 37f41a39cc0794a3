"""Ensembles: several judges' labels become one, by majority, average or median.

Rounding and tie rules are part of the API; a mean within 1e-9 of a half is a half. Votes are [judges][items], None
where a judge gave none; the result is one grade per item, −1 where nobody voted.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

Tie = Literal["average", "min", "max", "median", "random"]
Rounding = Literal["half_up", "half_even"]
EnsembleRule = Literal["majority", "average", "median"]

NO_VOTE = -1

_ROUND: dict[str, Callable[[float], int]] = {"half_up": lambda x: math.floor(x + 0.5), "half_even": round}


def combine_votes(
    votes: Any,
    how: EnsembleRule,
    *,
    tie: Tie = "average",
    rounding: Rounding = "half_up",
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> list[int]:
    """One grade per item of votes [judges][items], by the named rule; see `majority`, `average` and `median`."""
    if how == "majority":
        return majority(votes, tie=tie, seed=seed)
    return median(votes) if how == "median" else average(votes, rounding=rounding, weights=weights)


def majority(votes: Any, *, tie: Tie = "average", seed: int = 0, grades: Sequence[int] = (0, 1, 2, 3)) -> list[int]:
    """The most frequent grade of each item, of votes [judges][items] with None for a missing one.

    Of equally frequent grades it is their mean rounded half up, the lowest, the highest, the lower middle one, or one
    drawn from seed and item alone (the order of judges does not matter). Raises ValueError for a vote outside the
    scale.
    """
    return [_decide(index, cast, tie, seed, grades) for index, cast in enumerate(_items(votes))]


def _decide(index: int, cast: Sequence[int], tie: Tie, seed: int, grades: Sequence[int]) -> int:
    if not cast:
        return NO_VOTE
    if not set(cast) <= set(grades):
        raise ValueError(f"Item {index} has a vote outside the grades {list(grades)}.")
    count = Counter(cast)
    tied = sorted(grade for grade, times in count.items() if times == max(count.values()))
    if tie == "random":
        draw = hashlib.sha256(f"{seed}:{index}".encode()).digest()
        return tied[int.from_bytes(draw[:8], "big") % len(tied)]
    rules: dict[str, Callable[[list[int]], int]] = {
        "average": lambda tied: _ROUND["half_up"](sum(tied) / len(tied)),
        "min": min,
        "max": max,
        "median": lambda tied: tied[(len(tied) - 1) // 2],
    }
    return rules[tie](tied)


def average(votes: Any, *, rounding: Rounding = "half_up", weights: Sequence[float] | None = None) -> list[int]:
    """The rounded (weighted) mean of each item's votes; missing votes are skipped together with their weights.

    Raises ValueError unless there is one weight per judge and none is negative.
    """
    rows = [list(row) for row in votes]
    shares = [1.0] * len(rows) if weights is None else list(weights)
    if len(shares) != len(rows) or any(share < 0 for share in shares):
        raise ValueError(f"{len(shares)} weights for {len(rows)} judges; one for each, none negative.")
    return [_mean(item, shares, rounding) for item in zip(*rows, strict=True)]


def _mean(item: Sequence[Any], shares: Sequence[float], rounding: Rounding) -> int:
    cast = [(float(vote), share) for vote, share in zip(item, shares, strict=True) if not _missing(vote)]
    total = sum(share for _, share in cast)
    return _ROUND[rounding](round(sum(vote * share for vote, share in cast) / total, 9)) if total else NO_VOTE


def median(votes: Any) -> list[int]:
    """The median of each item's votes, rounded half up."""
    return [_ROUND["half_up"](float(np.median(cast))) if cast else NO_VOTE for cast in _items(votes)]


def _items(votes: Any) -> list[list[int]]:
    return [[int(v) for v in item if not _missing(v)] for item in zip(*votes, strict=True)]


def _missing(vote: Any) -> bool:
    return vote is None or vote != vote  # noqa: PLR0124 - NaN is the array form of missing
