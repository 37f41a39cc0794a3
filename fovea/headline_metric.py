"""Headline metric of a model card: the number measured here and, only where the data is alike, the paper's number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HeadlineMetric:
    """One metric, measured here (`ours`) and published (`paper`); figures of synthetic data have no published one."""

    name: str
    ours: float | None
    paper: float | None
    data: str = ""

    @property
    def is_synthetic(self) -> bool:
        """Whether ours was measured on made data, which says little about real data."""
        return self.ours is not None and "synthetic" in self.data.lower()


def pick_headline(metrics: Sequence[Mapping[str, Any]]) -> HeadlineMetric | None:
    """Pick the headline of a card's metrics: the first with both numbers, else the first."""
    found = [HeadlineMetric(str(m["name"]), m.get("ours"), m.get("paper"), str(m.get("data", ""))) for m in metrics]
    alike = [HeadlineMetric(one.name, one.ours, None, one.data) if one.is_synthetic else one for one in found]
    return next((one for one in alike if one.ours is not None and one.paper is not None), next(iter(alike), None))
