"""Draws the panels of a dashboard from what Prometheus answered, as one SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Series = Mapping[str, Sequence[tuple[float, float]]]

_WIDTH, _HEIGHT, _COLUMNS = 480, 190, 2
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 52, 30, 240, 130
_COLOURS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#0d9488", "#b59e00", "#8a8a8a")
_MOST_SERIES = 8
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"))


@dataclass(frozen=True)
class Panel:
    """One panel: its title, its unit as Grafana names it, and its series by legend: (seconds, value) in time."""

    title: str
    unit: str
    series: Series


def draw_panels(panels: Sequence[Panel], begin: float, end: float, span: str = "") -> str:
    """An SVG of all panels in two columns, over the time from `begin` to `end`: seconds, or what `span` calls it."""
    rows = -(-len(panels) // _COLUMNS)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_COLUMNS * _WIDTH}" height="{rows * _HEIGHT}" '
            'font-family="sans-serif" font-size="10">'
        ),
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = number % _COLUMNS * _WIDTH, number // _COLUMNS * _HEIGHT
        parts.append(f'<g transform="translate({x},{y})">{_draw(panel, begin, end, span)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _draw(panel: Panel, begin: float, end: float, span: str) -> str:
    top = max((value for points in panel.series.values() for _, value in points), default=0.0) or 1.0
    right, span = _LEFT + _PLOT_WIDTH, span or f"{end - begin:.0f} s"
    parts = [
        f'<text x="8" y="18" font-size="12" font-weight="bold">{escape(panel.title)}</text>',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" fill="#f7f8fa"/>',
        _label(top, panel.unit, _TOP + 8),
        _label(0, panel.unit, _TOP + _PLOT_HEIGHT),
        f'<text x="{right}" y="{_TOP + _PLOT_HEIGHT + 13}" text-anchor="end">{span}</text>',
    ]
    if not panel.series:
        parts.append(f'<text x="{_LEFT + 90}" y="{_TOP + 68}" fill="#888888">no data</text>')
    for number, (legend, points) in enumerate(list(panel.series.items())[:_MOST_SERIES]):
        colour = _COLOURS[number]
        line = " ".join(
            f"{_LEFT + (at - begin) / (end - begin) * _PLOT_WIDTH:.1f},{_TOP + (1 - value / top) * _PLOT_HEIGHT:.1f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        y = _TOP + 10 + 15 * number
        parts.append(f'<rect x="{_LEFT + _PLOT_WIDTH + 10}" y="{y - 7}" width="8" height="8" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + _PLOT_WIDTH + 22}" y="{y}">{escape(legend[:30])}</text>')
    return "".join(parts)


def _label(value: float, unit: str, y: float) -> str:
    return f'<text x="{_LEFT - 4}" y="{y}" text-anchor="end">{_spell(value, unit)}</text>'


def _spell(value: float, unit: str) -> str:
    """A number with its unit: `250 ms`, `1.2 k`, `80 %`."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    size, letter = next(((s, x) for s, x in _SCALES if abs(value) >= s), (1.0, ""))
    return f"{value / size:.3g} {letter}{'s' if unit == 's' else ''}".strip()
