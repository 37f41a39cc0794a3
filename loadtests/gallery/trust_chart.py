"""A trust report as a chart: pair order of a judge and of what costs nothing, with intervals."""

from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, LEFT, ROW = 720, 190, 44
LOW, HIGH = 0.4, 1.0


def draw_trust(report: Mapping[str, Any]) -> str:
    """An SVG document; a dot is the share of pairs in the right order, a bar its 95 % interval."""
    rows = [report["judge"], *report["baselines"]]
    bottom = 40 + ROW * len(rows)
    parts = [f'<text x="16" y="24" font-weight="600">{escape(report["statement"].split(":")[0][:88])}</text>']
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        x, dash = _to_x(tick), ' stroke-dasharray="4 3"' if tick == 0.5 else ""
        stroke = "#222" if tick == 0.5 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" y1="40" x2="{x:.1f}" y2="{bottom}" stroke="{stroke}"{dash}/>')
        label = "chance" if tick == 0.5 else f"{tick:g}"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    for place, row in enumerate(rows):
        parts += _draw_row(row, 40 + ROW * (place + 0.5), "#d1495b" if place == 0 else "#2e6f95")
    caption = "share of pairs of passages in the order of the labels, 95 % interval over topics"
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{bottom + 38}" text-anchor="middle">{caption}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 52}" font-family="sans-serif"'
    return f'{head} font-size="13"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'


def _draw_row(row: Mapping[str, Any], y: float, colour: str) -> list[str]:
    name = f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(row["name"])}</text>'
    if row["pair_order"] is None:
        return [name]
    parts = [name]
    if row["pair_order_interval"] is not None:
        low, high = (_to_x(value) for value in row["pair_order_interval"])
        bar = f'x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"'
        parts.append(f'<line {bar} stroke="{colour}" stroke-width="4" stroke-linecap="round"/>')
    x = _to_x(row["pair_order"])
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{colour}" stroke="#fff"/>')
    parts.append(f'<text x="{x:.1f}" y="{y - 11:.1f}" text-anchor="middle">{row["pair_order"]:.3f}</text>')
    return parts


def _to_x(value: float) -> float:
    return LEFT + (min(max(value, LOW), HIGH) - LOW) / (HIGH - LOW) * (WIDTH - LEFT - 30)
