"""Headline metric of a model card: the number measured here beside the number that its paper reports.

A paper measures on its own data. Where a card lists that under a name of its own (`mean_dice.kvasir` beside our
`mean_dice`), the two are paired, and each keeps the name of its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Metric = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HeadlineMetric:
    """One metric, measured here and published.

    Attributes:
        name: What was measured, for example `mean_dice`.
        ours: Measured with the served weights, or None.
        paper: Published, or None.
        data: What ours was measured on.
        paper_data: What the paper's was measured on, where that is something else; empty otherwise.
    """

    name: str
    ours: float | None
    paper: float | None
    data: str = ""
    paper_data: str = ""

    @property
    def is_synthetic(self) -> bool:
        """Whether ours was measured on made data, which says little about real data."""
        return self.ours is not None and "synthetic" in self.data.lower()


def pick_headline(metrics: Sequence[Metric]) -> HeadlineMetric | None:
    """Pick the headline of a card's metrics: the first with both numbers, else the first."""
    found = [_pair_with_paper(metric, metrics) for metric in metrics]
    return next((pair for pair in found if pair.ours is not None and pair.paper is not None), next(iter(found), None))


def _pair_with_paper(metric: Metric, metrics: Sequence[Metric]) -> HeadlineMetric:
    name, data, paper = str(metric["name"]), str(metric.get("data", "")), metric.get("paper")
    if paper is not None or metric.get("ours") is None:
        return HeadlineMetric(name, metric.get("ours"), paper, data)
    for other in metrics:
        if str(other["name"]).startswith(f"{name}.") and other.get("paper") is not None:
            return HeadlineMetric(name, metric["ours"], other["paper"], data, str(other.get("data", "")))
    return HeadlineMetric(name, metric["ours"], None, data)
