"""Map of a survey as SVG: segments shaded by damage, damage by class, the route, scale and north. No tiles."""

import math
import re
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fovea_survey.geodesy import to_metres
from fovea_survey.schemas import DamagePoint, SurveyOut

WIDTH, HEIGHT, MARGIN = 960, 640, 48
COLOURS = ("#d1495b", "#2e6f95", "#edae49", "#3d7068", "#8f5aa8", "#6b4f3a", "#577590", "#b5651d")
SHADES = ("#9fb0bf", "#e9c46a", "#f4a261", "#e76f51", "#b02a1e")
"""Of segments, from none to the most damage per kilometre."""

RADII = {"low": 4.0, "medium": 6.0, "high": 8.5}
"""Colour of a marker, by severity."""
SPOT = 6.0
"""Damage within this many pixels lies on one spot, whose number is written next to it."""
MAX_MOVED = 5000
"""Most markers that are moved apart."""

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Letters that names of files may hold and XML may not."""

Metres = NDArray[np.float64]


def draw_map(survey: SurveyOut) -> str:
    """An SVG document; positions are metres on a local plane, north is up."""
    lines = [segment.line for segment in survey.segments]
    points = [(damage.latitude, damage.longitude) for damage in survey.damages]
    everything = [(lat, lon) for line in lines for lon, lat in line] + points
    if not everything:
        text = '<text x="480" y="320" text-anchor="middle">No picture states its place.</text>'
        return _document([text, *_legend(survey, {})])
    metres = to_metres(everything)
    pixels, scale = _fit(metres)
    parts, at = [_grid(scale)], 0
    most = max((segment.per_km for segment in survey.segments), default=0.0)
    for segment in survey.segments:
        part = pixels[at : at + len(segment.line)]
        at += len(segment.line)
        share = segment.per_km / most if most else 0.0
        shade = SHADES[1 + min(int(3.999 * share), 3)] if segment.damages else SHADES[0]
        tip = f"{segment.start_m:.0f}–{segment.end_m:.0f} m: {segment.damages} damages, {segment.per_km:.1f} per km"
        parts.append(_line(part, shade, 6, tip))
    places = pixels[at:]
    if survey.route is not None and len(survey.route.order) > 1:
        tour = places[[*survey.route.order, survey.route.order[0]]]
        parts.append(_line(tour, "#222", 1.4, f"Inspection route, {survey.route.length_m:.0f} m", dashed=True))
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(survey.counts)}
    parts += _draw_markers(survey.damages, places, colours)
    return _document([*parts, *_legend(survey, colours), *_scale_bar(scale), _NORTH])


def _draw_markers(damages: Sequence[DamagePoint], places: Metres, colours: dict[str, str]) -> Iterator[str]:
    """A dot for each damage, linked to its picture; none hides another, and the number of each spot."""
    radii = np.array([RADII[one.severity or "low"] for one in damages])
    spots = _find_spots(places)
    moved = _move_apart(places, radii, spots)
    for place in np.argsort(-radii, kind="stable").tolist():
        (x, y), (left, top) = moved[place], places[place]
        if math.hypot(x - left, y - top) > 2 * SPOT:
            yield f'<path d="M{left:.1f} {top:.1f}L{x:.1f} {y:.1f}" stroke="#888" stroke-width=".7"/>'
        yield _dot(damages[place], float(x), float(y), colours)
    for members in spots:
        if len(members) > 1:
            x, y = moved[members, 0].max() + 8, moved[members, 1].min() - 2
            yield f'<text x="{x:.1f}" y="{y:.1f}" font-weight="700" class="count">{len(members)}</text>'


def _dot(one: DamagePoint, x: float, y: float, colours: dict[str, str]) -> str:
    size = f", {one.severity}" if one.severity else ""
    tip = escape(f"{one.label}, {one.score:.2f}{size}, {', '.join(one.pictures[:3])}")
    radius = RADII[one.severity or "low"]
    dot = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colours[one.label]}" stroke="#fff"'
    drawn = f"<circle {dot}><title>{tip}</title></circle>"
    return f'<a href="{escape(one.picture)}">{drawn}</a>' if one.picture else drawn


def _find_spots(places: Metres) -> list[list[int]]:
    """Damage that lies on one spot of the map, in the order of its first members."""
    tree, taken, spots = cKDTree(places) if len(places) else None, set[int](), list[list[int]]()
    for place in range(len(places)):
        if tree is None or place in taken:
            continue
        members = sorted(set(tree.query_ball_point(places[place], SPOT)) - taken)
        taken.update(members)
        spots.append(members)
    return spots


def _move_apart(places: Metres, radii: NDArray[np.float64], spots: Sequence[Sequence[int]]) -> Metres:
    """Places of markers that do not cover each other: those of one spot form a spiral, and all push each other."""
    moved = places.copy()
    for members in spots:
        turns = np.arange(len(members)) * math.pi * (3 - math.sqrt(5))  # a sunflower's seeds
        moved[list(members)] += np.stack([np.cos(turns), np.sin(turns)], 1) * np.sqrt(np.arange(len(members)))[:, None]
    for _ in range(100 if 1 < len(places) <= MAX_MOVED else 0):
        pairs = cKDTree(moved).query_pairs(2 * radii.max(initial=0) + 1, output_type="ndarray")
        if not len(pairs):
            break
        first, second = pairs.T
        apart = moved[first] - moved[second]
        far = np.maximum(np.linalg.norm(apart, axis=1), 1e-6)
        push = np.maximum(radii[first] + radii[second] + 1 - far, 0)
        if push.max() < 0.5:
            break
        step = apart / far[:, None] * push[:, None] / 2
        np.add.at(moved, first, step)
        np.add.at(moved, second, -step)
    return moved


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
    y = 28 + 20 * len(survey.counts)
    if survey.per_km is not None:
        rows.append(f'<text x="24" y="{y}">{survey.per_km:.1f} per km over {survey.length_km:.2f} km</text>')
        y += 20
    if survey.not_placed:
        rows.append(f'<text x="24" y="{y}">found, not placed: {len(survey.not_placed)}</text>')
        y += 20
    for place, name in enumerate(RADII if survey.damages else ()):
        rows.append(f'<circle cx="{28 + 96 * place}" cy="{y - 4}" r="{RADII[name]}" fill="none" stroke="#222"/>')
        rows.append(f'<text x="{42 + 96 * place}" y="{y}">{name}</text>')
    return rows


_NORTH = (
    f'<g transform="translate({WIDTH - 36} 44)"><path d="M0 -20L7 8L0 3L-7 8Z" fill="#222"/>'
    '<text y="24" text-anchor="middle">N</text></g>'
)


def _document(parts: Sequence[str]) -> str:
    role = "group" if any("<a " in part for part in parts) else "img"  # links in an image can't be reached
    font = 'font-family="system-ui,sans-serif" font-size="13" fill="#222"'
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="{role}" aria-label="Map">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fbfcfc"/><g {font}>{"".join(parts)}</g></svg>\n'
    )
    return _NO_XML.sub("\ufffd", text)
