"""Plots of a report's parts: heat maps, bars, token strips and circuit graphs, with scale, caption and numbers.

Knows data and shapes; knows no experiment. Head maps may link every cell to that head's pattern on a text.
"""

import math
import textwrap
from collections.abc import Callable, Sequence

from services.interpretability.core.report import Bars, Graph, HeatMap, Strip
from services.interpretability.rendering import svg
from services.interpretability.rendering.svg import BLUE, GREY, INK, ORANGE, Drawing, Line, Rect, Text

Link = Callable[[HeatMap, int, int], str]
"""`link(grid, row, column)`: where a click on a cell leads; empty for nowhere."""

WIDTH = 760
MARGIN_TOP, MARGIN_LEFT = 58, 92
COLOUR_BAR_HEIGHT = 120
"""Height of a colour bar."""

PANEL_SIDE, PANELS_PER_ROW, MAX_PANEL_CELLS = 118, 5, 32
"""Side of a small map, how many stand in a row, and most cells along its side."""

MAX_MAP_CELLS = 2**16
"""Cells of a drawn map: a picture takes seconds and 40 MB for so many. Larger maps show the largest of neighbours."""

MAX_LABELLED_TICKS = 40
"""Rows or columns up to which every tick is written."""


def draw_words(words: str) -> Drawing:
    """Draw a sentence."""
    return Drawing(480, 60, words, [Text(12, 34, words, 13)])


def draw_heat_map(data: HeatMap, link: Link | None = None) -> Drawing:
    """Draw a heat map: darker is more; diverging ones are blue above zero and orange below."""
    rows, columns = len(data.values), len(data.values[0]) if data.values else 0
    if (by := math.isqrt(max(rows * columns - 1, 0) // MAX_MAP_CELLS) + 1) > 1:
        row_axis, column_axis = (of.model_copy(update={"ticks": of.ticks[::by]}) for of in (data.rows, data.columns))
        caption = f"{data.caption} A cell is the largest of {by}×{by}; all are in the JSON."
        shown = {"values": _max_pool(data.values, by, by), "rows": row_axis, "columns": column_axis, "caption": caption}
        data = data.model_copy(update=shown)
        rows, columns = len(data.values), len(data.values[0])
    cell_w = max(min((WIDTH - MARGIN_LEFT - 90) / max(columns, 1), 46), 2)
    cell_h = max(min(420 / max(rows, 1), 24), 2)
    # Long ticks (tokens) stand upright below; short ones (numbers) lie.
    turned = max((len(tick) for tick in data.columns.ticks), default=0) > 4
    height = max(rows * cell_h + (84 if turned else 30), COLOUR_BAR_HEIGHT + 14)
    bar_x = MARGIN_LEFT + columns * cell_w + 18
    drawing = _start_drawing(data.name, data.caption, MARGIN_TOP + height, data.alt, max(WIDTH, bar_x + 72))
    largest = max((abs(v) for row in data.values for v in row if v is not None), default=0.0) or 1.0
    paint = svg.diverging if data.scale == "diverging" else svg.sequential
    for r, row in enumerate(data.values):
        for c, value in enumerate(row):
            title = f"{data.rows.ticks[r]} / {data.columns.ticks[c]}: {format_number(value, 9)}"
            fill = paint(None if value is None else value / largest)
            box = (MARGIN_LEFT + c * cell_w, MARGIN_TOP + r * cell_h, cell_w - 0.5, cell_h - 0.5)
            drawing.add(Rect(*box, fill, title, link(data, r, c) if link else ""))
    _add_row_ticks(drawing, data, cell_h)
    _add_column_ticks(drawing, data, cell_w, MARGIN_TOP + rows * cell_h, turned=turned)
    _add_colour_bar(drawing, data, largest, bar_x)
    return _add_caption(drawing, data.caption)


def draw_panels(maps: Sequence[HeatMap], link: Callable[[HeatMap], str]) -> Drawing:
    """Draw many small maps of the same axes on one scale; a click enlarges one."""
    step = PANEL_SIDE + 26
    caption = f"{maps[0].caption} Small maps show the largest of neighbours where there are many; a click enlarges one."
    alt = f"{len(maps)} maps, {maps[0].name} to {maps[-1].name}."
    height = MARGIN_TOP + -(-len(maps) // PANELS_PER_ROW) * step
    drawing = _start_drawing(f"{maps[0].name} … {maps[-1].name}", caption, height, alt)
    largest = max((abs(v) for data in maps for row in data.values for v in row if v is not None), default=0.0) or 1.0
    for i, data in enumerate(maps):
        x, y = 12 + i % PANELS_PER_ROW * (PANEL_SIDE + 12), MARGIN_TOP + i // PANELS_PER_ROW * step
        drawing.add(Text(x, y - 4, data.name, 10), Rect(x, y, PANEL_SIDE, PANEL_SIDE, svg.sequential(0.0)))
        values = _max_pool(data.values, *(-(-len(of.ticks) // MAX_PANEL_CELLS) for of in (data.rows, data.columns)))
        w, h = PANEL_SIDE / len(values[0]), PANEL_SIDE / len(values)
        for r, row in enumerate(values):
            for c, value in enumerate(row):
                if value > largest / 100:
                    drawing.add(Rect(x + c * w, y + r * h, w, h, svg.sequential(value / largest)))
        drawing.add(Rect(x, y, PANEL_SIDE, PANEL_SIDE, None, f"{data.alt} Click to enlarge.", link(data)))
    _add_colour_bar(drawing, maps[0], largest, 12 + PANELS_PER_ROW * (PANEL_SIDE + 12) + 6)
    return _add_caption(drawing, caption)


def _max_pool(values: Sequence[Sequence[float | None]], high: int, wide: int) -> list[list[float]]:
    """Reduce a map to the largest of each patch of so many cells, by size."""
    starts = range(0, len(values[0]), wide)
    patches = [values[r : r + high] for r in range(0, len(values), high)]
    return [[max((v or 0.0 for row in of for v in row[c : c + wide]), key=abs) for c in starts] for of in patches]


def draw_bars(data: Bars) -> Drawing:
    """Draw bars, with an interval where a value varies."""
    count, height = max(len(data.bars), 1), 190
    step = min((WIDTH - MARGIN_LEFT - 20) / count, 90)
    marks = [v for bar in data.bars for v in (bar.value, bar.low, bar.high) if v is not None]
    low, high = min([0.0, *marks]), max([0.0, *marks])
    high = high or (0.0 if low else 1.0)
    span = (high - low) * 1.08

    def y(value: float) -> float:
        return MARGIN_TOP + height * (1 - (value - low) / span)

    labels = _fit([bar.label for bar in data.bars], max(int(step / 5), 3))
    listed = ", ".join(f"{bar.label} {format_number(bar.value)}" for bar in data.bars[:6])
    drawing = _start_drawing(data.name, data.caption, MARGIN_TOP + height + 36, f"{data.name}: {listed}.")
    for value in (low, high) if low < 0 else (0.0, high / 2, high):
        drawing.add(Line(MARGIN_LEFT, y(value), MARGIN_LEFT + step * count, y(value), (225, 227, 232)))
        drawing.add(Text(MARGIN_LEFT - 6, y(value) + 4, format_number(value), 10, GREY, "end"))
    for i, bar in enumerate(data.bars):
        x = MARGIN_LEFT + i * step
        if bar.value is not None:
            top, bottom = sorted((y(bar.value), y(0)))
            title = f"{bar.label}: {format_number(bar.value, 9)} {data.unit}"
            colour = BLUE if bar.value >= 0 else ORANGE
            drawing.add(Rect(x + step * 0.12, top, step * 0.76, max(bottom - top, 1), colour, title))
        if bar.low is not None and bar.high is not None:
            drawing.add(Line(x + step / 2, y(bar.low), x + step / 2, y(bar.high), INK, 1.6))
        if count <= MAX_LABELLED_TICKS or i % (count // MAX_LABELLED_TICKS + 1) == 0:
            drawing.add(Text(x + step / 2, MARGIN_TOP + height + 16, labels[i], 10, INK, "middle"))
        if step > 40 and bar.value is not None:
            beside = bar.high is not None  # the interval's line stands in the middle
            label_x, anchor = (x + step / 2 + 4, "start") if beside else (x + step / 2, "middle")
            drawing.add(Text(label_x, y(max(bar.value, 0)) - 4, format_number(bar.value), 10, INK, anchor))
    drawing.add(Text(MARGIN_LEFT, MARGIN_TOP - 14, data.unit, 10, GREY))
    return _add_caption(drawing, data.caption)


def draw_strip(data: Strip) -> Drawing:
    """A text, each token on its colour."""
    largest = max((abs(v) for v in data.values if v is not None), default=0.0) or 1.0
    paint = svg.diverging if data.scale == "diverging" else svg.sequential
    x, y, placed = 12.0, float(MARGIN_TOP), []
    for token, value in zip(data.tokens, data.values, strict=True):
        shown = token.text.replace("\n", "⏎")
        width = max(len(shown), 1) * 7.4 + 4
        if x + width > WIDTH - 12:
            x, y = 12.0, y + 24
        placed.append((x, y, width, shown, value))
        x += width + 1
        if "\n" in token.text:
            x, y = 12.0, y + 24
    ranked = sorted(zip(data.tokens, data.values, strict=True), key=lambda pair: -abs(pair[1] or 0))[:3]
    listed = ", ".join(f"{token.text!r} {format_number(value)}" for token, value in ranked)
    drawing = _start_drawing(data.name, data.caption, y + 34, f"{data.name}: {listed}.")
    for left, top, width, shown, value in placed:
        fill = paint(None if value is None else value / largest)
        drawing.add(Rect(left, top, width, 20, fill, f"{shown}: {format_number(value, 9)}"))
        drawing.add(Text(left + 2, top + 14, shown, 11, (255, 255, 255) if sum(fill) < 380 else INK))
    return _add_caption(drawing, data.caption)


def draw_graph(data: Graph) -> Drawing:
    """Draw a circuit: heads from low layers to high, edges as wide as their effect."""
    layers = sorted({node.layer for node in data.nodes})
    positions: dict[str, tuple[float, float]] = {}
    for r, layer in enumerate(reversed(layers)):
        of = [node for node in data.nodes if node.layer == layer]
        for c, node in enumerate(of):
            x = MARGIN_LEFT + (c + 0.5) * (WIDTH - MARGIN_LEFT - 30) / len(of)
            positions[node.id] = (x, MARGIN_TOP + 58 + r * 46)
    positions["output"] = (MARGIN_LEFT + (WIDTH - MARGIN_LEFT - 30) / 2, MARGIN_TOP + 8)
    edges = [edge for edge in data.edges if edge.value is not None and edge.source in positions]
    largest = max((abs(edge.value or 0) for edge in edges), default=0.0) or 1.0
    ranked = sorted(edges, key=lambda edge: -abs(edge.value or 0))[:3]
    listed = ", ".join(f"{edge.source} to {edge.target} {format_number(edge.value)}" for edge in ranked)
    height, alt = MARGIN_TOP + 50 + len(layers) * 46, f"{data.name}: {listed or 'no edge'}."
    drawing = _start_drawing(data.name, data.caption, height, alt)
    for edge in edges:
        target = positions.get(edge.target) or positions.get(edge.target.split("…")[0])
        if target:
            (x1, y1), (x2, y2), value = positions[edge.source], target, edge.value or 0.0
            colour, title = BLUE if value >= 0 else ORANGE, f"{edge.source} → {edge.target}: {format_number(value, 9)}"
            drawing.add(Line(x1, y1, x2, y2, colour, 0.8 + 5 * abs(value) / largest, title))
    for layer in layers:
        y = next(positions[node.id][1] for node in data.nodes if node.layer == layer)
        drawing.add(Text(12, y + 4, "input" if layer < 0 else f"layer {layer}", 10, GREY))
    for node in data.nodes:
        x, y = positions[node.id]
        title = f"{node.id} {node.kind}: {format_number(node.value, 9)}"
        drawing.add(Rect(x - 46, y - 14, 92, 28, (238, 241, 246), title))
        drawing.add(Text(x, y - 2, node.id, 11, INK, "middle"), Text(x, y + 10, node.kind, 9, GREY, "middle"))
    x, y = positions["output"]
    drawing.add(Rect(x - 40, y - 12, 80, 24, INK), Text(x, y + 4, "answer", 11, (255, 255, 255), "middle"))
    return _add_caption(drawing, data.caption)


def _start_drawing(name: str, caption: str, height: float, alt: str, width: float = WIDTH) -> Drawing:
    drawing = Drawing(width, height + 16 * len(textwrap.wrap(caption, 112)) + 8, f"{alt} {caption}")
    drawing.add(Text(12, 24, name.replace("_", " "), 15))
    return drawing


def _add_caption(drawing: Drawing, caption: str) -> Drawing:
    lines = textwrap.wrap(caption, 112)
    for i, line in enumerate(lines):
        drawing.add(Text(12, drawing.height - 16 * (len(lines) - i) + 6, line, 11, GREY))
    return drawing


def _fit(texts: list[str], room: int) -> list[str]:
    """Cut texts to so many characters where most of them stay apart: names of layers begin and end alike."""
    heads = (room // 2, *range(room))
    cuts = ([t if len(t) <= room else f"{t[:head]}…{t[len(t) - room + head + 1 :]}" for t in texts] for head in heads)
    return max(cuts, key=lambda cut: len(set(cut)))


def _add_row_ticks(drawing: Drawing, data: HeatMap, cell_h: float) -> None:
    every = max(len(data.rows.ticks) // MAX_LABELLED_TICKS + 1, round(11 / max(cell_h, 1)))
    for r, tick in list(enumerate(_fit(data.rows.ticks, 13)))[::every]:
        drawing.add(Text(MARGIN_LEFT - 6, MARGIN_TOP + (r + 0.5) * cell_h + 4, tick, 10, INK, "end"))
    drawing.add(Text(12, MARGIN_TOP - 8, data.rows.label, 10, GREY))


def _add_column_ticks(drawing: Drawing, data: HeatMap, cell_w: float, bottom: float, *, turned: bool) -> None:
    every = max(round((11 if turned else 22) / max(cell_w, 1)), 1)
    for c, tick in list(enumerate(_fit(data.columns.ticks, 12)))[::every]:
        x, shown = MARGIN_LEFT + (c + 0.5) * cell_w, tick.replace("\n", "⏎")
        upright = Text(x + 4, bottom + 6, shown, 10, INK, "end", turned=True)
        drawing.add(upright if turned else Text(x, bottom + 14, shown, 10, INK, "middle"))
    drawing.add(Text(MARGIN_LEFT, bottom + (78 if turned else 28), data.columns.label, 10, GREY))


def _add_colour_bar(drawing: Drawing, data: HeatMap, largest: float, x: float) -> None:
    """Add a colour bar with its numbers."""
    steps, height = 24, float(COLOUR_BAR_HEIGHT)
    ends = (-1.0, 1.0) if data.scale == "diverging" else (0.0, 1.0)
    for i in range(steps):
        share = ends[1] + (ends[0] - ends[1]) * (i + 0.5) / steps
        colour = svg.diverging(share) if data.scale == "diverging" else svg.sequential(share)
        drawing.add(Rect(x, MARGIN_TOP + i * height / steps, 14, height / steps + 0.5, colour))
    for share in (ends[1], (ends[0] + ends[1]) / 2, ends[0]):
        y = MARGIN_TOP + height * (ends[1] - share) / (ends[1] - ends[0])
        drawing.add(Text(x + 18, y + 4, format_number(share * largest), 10, GREY))
    drawing.add(Text(x, MARGIN_TOP - 8, data.unit, 10, GREY))


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number to so many digits."""
    return "undefined" if value is None else f"{value:.{digits}g}"
