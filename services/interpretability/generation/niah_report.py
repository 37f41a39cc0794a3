"""The needle picture: context length by depth, colour is how much came back. Knows numbers, not who measured them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.interpretability.core.report import Axis, HeatMap

__all__ = ["build_niah_map"]


def build_niah_map(
    lengths: Sequence[int],
    depths: Sequence[int],
    cells: Sequence[tuple[Mapping[str, Any], float]],
    name: str = "needle",
) -> HeatMap:
    """Mean recall per depth (row) and length (column) over cells, each with `length` and `depth`."""
    values = [
        [
            float(np.mean(found))
            if (found := [v for f, v in cells if (f["length"], f["depth"]) == (length, depth)])
            else None
            for length in lengths
        ]
        for depth in depths
    ]
    return HeatMap(
        name=name,
        values=values,
        unit="share of the answer",
        rows=Axis(label="depth, %", ticks=[str(depth) for depth in depths]),
        columns=Axis(label="length, tokens", ticks=[str(length) for length in lengths]),
        caption="How much of the answer came back, by context length and by how deep the needle was: 1 is all of it.",
    )
