"""Rendering of a report as a page, a picture or arrays; the plots are in `plots`."""

import re
from itertools import count
from typing import Any

import numpy as np

from services.interpretability.core.report import NPZ, Report, pack_arrays
from services.interpretability.rendering.html_page import draw_report, render_page
from services.interpretability.rendering.plots import draw_words
from services.interpretability.rendering.svg import Drawing, stack_drawings

ACTIVATIONS = "activations.npz"
"""Name of the artefact that is a report's arrays."""

FORMATS = {"html": "text/html", "png": "image/png", "svg": "image/svg+xml", "npz": NPZ}
"""Short name → media type."""


def render(report: Report, media_type: str) -> bytes | None:
    """Return the report as `media_type`, or None when there is no such form."""
    if media_type == "text/html":
        return render_page(report).encode()
    if media_type == "image/png":
        return _draw_all(report).png()
    if media_type == "image/svg+xml":
        return _draw_all(report).svg().encode()
    return to_npz(report) if media_type == NPZ else None


def to_npz(report: Report) -> bytes:
    """Return heat maps, bars and strips as arrays by name, undefined as NaN: the same numbers as in the JSON.

    Equal keys are numbered (`grid.c_`, `grid.c_2`). A report's own arrays, `activations.npz`, are returned instead.
    """
    for artefact in report.artefacts:
        if artefact.name == ACTIVATIONS:
            return artefact.data()
    found: list[tuple[str, str, Any]] = [("grid", grid.name, grid.values) for grid in report.grids]
    found += [("bars", bars.name, [bar.value for bar in bars.bars]) for bars in report.bars]
    found += [("strip", strip.name, strip.values) for strip in report.strips]
    values: dict[str, Any] = {f"scalar.{name}": scalar.value for name, scalar in report.scalars.items()}
    for kind, name, numbers in found:
        key = kind + "." + re.sub(r"\W+", "_", name)
        values[key if key not in values else next(f"{key}{n}" for n in count(2) if f"{key}{n}" not in values)] = numbers
    return pack_arrays({name: np.array(value, np.float64) for name, value in values.items()})


def _draw_all(report: Report) -> Drawing:
    return stack_drawings(draw_report(report) or [draw_words(f"{report.title}: numbers only, see the JSON.")])
