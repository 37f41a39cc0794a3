"""Map of a survey as SVG: segments shaded by damage, damage by class, the route, scale and north. No tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from fovea_survey.geodesy import to_metres
from fovea_survey.schemas import SurveyOut

WIDTH, HEIGHT, MARGIN = 960, 640, 48
COLOURS = ("#d1495b", "#2e6f95", "#edae49", "#3d7068", "#8f5aa8", "#6b4f3a", "#577590", "#b5651d")
SHADES = ("#9fb0bf", "#e9c46a", "#f4a261", "#e76f51", "#b02a1e")
"""Of segments, from none to the most damage per kilometre."""

Metres = NDArray[np.float64]


def draw_map(survey: SurveyOut) -> str:
    """An SVG document; positions are metres on a local plane, north is up."""
    lines = [segment.line for segment in survey.segments]
    points = [(damage.latitude, damage.longitude) for damage in survey.damages]
    everything = [(lat, lon) for line in lines for lon, lat in line] + points
    if not everything:
        return _document(['<text x="480" y="320" text-anchor="middle">No picture states its place.</text>'])
    metres = to_metres(everything)
    pixels, scale = _fit(metres)
    parts, at = [_grid(scale)], 0
    most = max((segment.per_km for segment in survey.segments), default=0.0)
    for segment in survey.segments:
        part = pixels[at : at + len(segment.line)]
        at += len(segment.line)
        shade = SHADES[0] if not segment.damages else SHADES[1 + min(int(3.999 * segment.per_km / most), 3)]
        tip = f"{segment.start_m:.0f}–{segment.end_m:.0f} m: {segment.damages} damages, {segment.per_km:.1f} per km"
        parts.append(_line(part, shade, 6, tip))
    places = pixels[at:]
    if survey.route is not None and len(survey.route.order) > 1:
        tour = places[[*survey.route.order, survey.route.order[0]]]
        parts.append(_line(tour, "#222", 1.4, f"Inspection route, {survey.route.length_m:.0f} m", dashed=True))
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(survey.counts)}
    for damage, (x, y) in zip(survey.damages, places, strict=True):
        tip = escape(f"{damage.label}, {damage.score:.2f}, {', '.join(damage.pictures[:3])}")
        dot = f'cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colours[damage.label]}" stroke="#fff"'
        parts.append(f"<circle {dot}><title>{tip}</title></circle>")
    return _document([*parts, *_legend(survey, colours), *_scale_bar(scale), _NORTH])


def _fit(metres: Metres) -> tuple[Metres, float]:
    """Pixels [n, 2] of metres, and pixels per metre."""
    low, span = metres.min(0), np.maximum(np.ptp(metres, axis=0), 20.0)
    scale = float(min((WIDTH - 2 * MARGIN) / span[0], (HEIGHT - 2 * MARGIN) / span[1]))
    offset = (np.asarray([WIDTH, HEIGHT]) - span * scale) / 2
    moved = (metres - low) * scale + offset
    return np.stack([moved[:, 0], HEIGHT - moved[:, 1]], axis=1), scale


def _line(points: Metres, colour: str, width: float, tip: str, *, dashed: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"'
        f' stroke-linejoin="round"{dash}><title>{escape(tip)}</title></polyline>'
    )


def _round_length(scale: float) -> float:
    """1, 2 or 5 times a power of ten metres, about a sixth of the map's width."""
    wished = WIDTH / 6 / scale
    power = 10 ** math.floor(math.log10(wished))
    return float(max(step * power for step in (1, 2, 5) if step * power <= wished))


def _grid(scale: float) -> str:
    step = _round_length(scale) * scale
    lines = [f'<path d="M{x:.1f} 0V{HEIGHT}"/>' for x in np.arange(step, WIDTH, step)]
    lines += [f'<path d="M0 {y:.1f}H{WIDTH}"/>' for y in np.arange(step, HEIGHT, step)]
    return f'<g stroke="#e8ecef">{"".join(lines)}</g>'


def _scale_bar(scale: float) -> Sequence[str]:
    length = _round_length(scale)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    end = 24 + length * scale
    return (
        f'<path d="M24 {HEIGHT - 30}v8H{end:.1f}v-8" fill="none" stroke="#222" stroke-width="1.5"/>',
        f'<text x="24" y="{HEIGHT - 36}">{text}</text>',
    )


def _legend(survey: SurveyOut, colours: dict[str, str]) -> list[str]:
    rows = []
    for place, (label, count) in enumerate(survey.counts.items()):
        y = 28 + 20 * place
        rows.append(f'<circle cx="28" cy="{y - 4}" r="5" fill="{colours[label]}"/>')
        rows.append(f'<text x="40" y="{y}">{escape(label)}: {count}</text>')
    total = f"{survey.per_km:.1f} per km over {survey.length_km:.2f} km" if survey.per_km is not None else ""
    return [*rows, f'<text x="24" y="{28 + 20 * len(survey.counts)}">{total}</text>']


_NORTH = (
    f'<g transform="translate({WIDTH - 36} 44)"><path d="M0 -20L7 8L0 3L-7 8Z" fill="#222"/>'
    '<text y="24" text-anchor="middle">N</text></g>'
)


def _document(parts: Sequence[str]) -> str:
    font = 'font-family="system-ui,sans-serif" font-size="13" fill="#222"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Map">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fbfcfc"/><g {font}>{"".join(parts)}</g></svg>\n'
    )
