"""Bias of a judge: by passage length and by words shared with the query, in terciles; and its invalid grades.

Needs the texts, unlike agreement itself.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, Field

from services.relevance_judge.metrics.agreement import GRADES, Qrels, cohen_kappa
from services.relevance_judge.metrics.baselines import overlap


class Tercile(BaseModel):
    """A third of the pairs, by one measure of their texts."""

    lowest: float
    highest: float
    pairs: int
    bias: float = Field(description="Mean of judge − reference.")
    mae: float
    kappa: float | None


class BiasBlock(BaseModel):
    """Bias by the measures of the texts, smallest third first."""

    by_length: list[Tercile] = Field(description="By words of the passage.")
    by_overlap: list[Tercile] = Field(description="By the share of the query's words that the passage holds.")
    pairs: int = Field(description="Pairs whose texts are known.")


def measure_bias(reference: Qrels, judge: Qrels, topics: Mapping[str, str], passages: Mapping[str, str]) -> BiasBlock:
    """Measure bias in terciles of length and lexical overlap, over pairs that both labelled and whose texts exist."""
    pairs = [pair for pair in reference if pair in judge and pair[0] in topics and pair[1] in passages]
    lengths = [float(len(passages[docid].split())) for _, docid in pairs]
    shares = [overlap(topics[qid], {docid: passages[docid]})[docid] for qid, docid in pairs]
    labels = np.clip([[reference[pair], judge[pair]] for pair in pairs], GRADES[0], GRADES[-1]).reshape(-1, 2)
    return BiasBlock(by_length=_terciles(lengths, labels), by_overlap=_terciles(shares, labels), pairs=len(pairs))


def invalid_share(reference: Qrels, invalid: Sequence[tuple[str, str]]) -> list[float | None]:
    """Share of pairs of each clamped reference grade that the judge gave no valid grade; None where there are none."""
    missed = set(invalid)
    rows = [[pair in missed for pair, grade in reference.items() if min(max(grade, 0), 3) == one] for one in GRADES]
    return [sum(row) / len(row) if row else None for row in rows]


def _terciles(measure: Sequence[float], labels: np.ndarray) -> list[Tercile]:
    """Thirds of equal size by a measure; equal values stay in input order, so ties may be parted."""
    rows = np.argsort(np.asarray(measure), kind="stable")
    thirds = [part for part in np.array_split(rows, 3) if part.size]
    return [_tercile([measure[row] for row in part], labels[part]) for part in thirds]


def _tercile(measure: Sequence[float], labels: np.ndarray) -> Tercile:
    off = (labels[:, 1] - labels[:, 0]).astype(float)
    return Tercile(
        lowest=min(measure),
        highest=max(measure),
        pairs=len(labels),
        bias=float(off.mean()),
        mae=float(np.abs(off).mean()),
        kappa=cohen_kappa(labels[:, 0], labels[:, 1]),
    )
