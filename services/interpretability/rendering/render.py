"""Rendering of a report as a page, a picture or arrays; the plots are in `plots`."""

from __future__ import annotations

import io
import re

import numpy as np

from services.interpretability.core.report import NPZ, Report
from services.interpretability.rendering.html_page import draw_report, render_page
from services.interpretability.rendering.svg import Drawing, Text, stack_drawings

ACTIVATIONS = "activations.npz"
"""Name of the artefact that is a report's arrays."""

FORMATS = {"html": "text/html", "png": "image/png", "svg": "image/svg+xml", "npz": NPZ}
"""Short name → media type."""

MEDIA_TYPES = tuple(FORMATS.values())


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

    Where a report is about arrays of its own, `activations.npz`, those are returned instead.
    """
    for artefact in report.artefacts:
        if artefact.name == ACTIVATIONS:
            return artefact.data()
    arrays = {f"grid.{_key(grid.name)}": _array(grid.values) for grid in report.grids}
    arrays |= {f"bars.{_key(bars.name)}": _array([bar.value for bar in bars.bars]) for bars in report.bars}
    arrays |= {f"strip.{_key(strip.name)}": _array(strip.values) for strip in report.strips}
    arrays |= {f"scalar.{name}": _array(scalar.value) for name, scalar in report.scalars.items()}
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]  # its stub takes the names of its own options only
    return out.getvalue()


def _array(values: object) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _key(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _draw_all(report: Report) -> Drawing:
    drawings = draw_report(report)
    if not drawings:
        nothing = Drawing(480, 60, f"{report.title}: no picture.")
        nothing.add(Text(12, 34, f"{report.title}: numbers only, see the JSON.", 13))
        return nothing
    return stack_drawings(drawings)
