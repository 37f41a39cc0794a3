"""Needle-in-a-haystack heat map: recall by context length and depth. Knows numbers, not who measured them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.interpretability.core.report import Axis, HeatMap


def build_niah_map(
    lengths: Sequence[int],
    depths: Sequence[float],
    cells: Sequence[tuple[Mapping[str, Any], float]],
    name: str = "needle",
) -> HeatMap:
    """Build the map of mean recall per depth (row) and length (column) from cells with `length` and `depth`."""

    def mean_recall(length: int, depth: float) -> float | None:
        recalls = [recall for facts, recall in cells if (facts["length"], facts["depth"]) == (length, depth)]
        return float(np.mean(recalls)) if recalls else None

    return HeatMap(
        name=name,
        values=[[mean_recall(length, depth) for length in lengths] for depth in depths],
        unit="share of the answer",
        rows=Axis(label="depth, %", ticks=[str(depth) for depth in depths]),
        columns=Axis(label="length, tokens", ticks=[str(length) for length in lengths]),
        caption="How much of the answer came back, by context length and by how deep the needle was: 1 is all of it.",
    )
