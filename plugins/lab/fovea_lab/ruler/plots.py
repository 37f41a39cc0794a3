"""Plots of RULER-form reports: mean score over bytes, a line with intervals for each of the six best methods."""

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from fovea_lab.ruler.report import Leader, RulerReport

SIZE, LEFT, TOP, RIGHT, BOTTOM = (1000, 560), 70, 40, 260, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
LINES = len(COLOURS)
"""More lines can't be told apart."""


def draw_means(report: RulerReport) -> bytes:
    """A PNG: bytes as shares of dense across, mean score up, over tasks that tell methods apart where there are any."""
    shown = [one for one in report.leaderboards if one.informative] or list(report.leaderboards)
    if shown:
        first = shown[0]
        shown = [one for one in shown if (one.protocol, one.length) == (first.protocol, first.length)]
    picture = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    _draw_axes(pen, font)
    if shown:
        title = f"mean score over bytes of dense, {shown[0].length:,} tokens, {shown[0].protocol}"
        pen.text((LEFT, 10), title, fill="black", font=font)
    names = list_best(shown)
    for at, name in enumerate(names):
        rows = sorted((one for one in shown if one.method == name and one.budget is not None), key=lambda x: x.bytes)
        _draw_line(pen, rows, COLOURS[at], dashed=rows[0].nominal)
        y = TOP + 18 * at
        pen.line((SIZE[0] - RIGHT + 20, y + 8, SIZE[0] - RIGHT + 44, y + 8), fill=COLOURS[at], width=3)
        pen.text((SIZE[0] - RIGHT + 50, y), name, fill="black", font=font)
    for one in shown:
        if one.method == "dense":
            pen.line((*_at(0, one.mean), *_at(1, one.mean)), fill="#999999", width=2)
            pen.text((LEFT + 6, _at(0, one.mean)[1] - 18), f"dense {one.mean:.2f}", fill="#666666", font=font)
    out = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def list_best(shown: Sequence[Leader], most: int = LINES) -> list[str]:
    """Names of the methods with the best mean over their budgets, among those that were measured at most budgets.

    Those with less than half of the answers of others are left out.
    """
    means, most_answers = defaultdict[str, list[float]](list), max((one.n for one in shown), default=0)
    for one in shown:
        if one.budget is not None and 2 * one.n >= most_answers:
            means[one.method].append(one.mean)
    return sorted(means, key=lambda name: (-len(means[name]), -fmean(means[name])))[:most]


def _at(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * (SIZE[0] - LEFT - RIGHT), SIZE[1] - BOTTOM - y * (SIZE[1] - TOP - BOTTOM)


def _draw_axes(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    for tick in (0, 0.25, 0.5, 0.75, 1):
        pen.line((*_at(tick, 0), *_at(tick, 1)), fill="#e5e5e5")
        pen.line((*_at(0, tick), *_at(1, tick)), fill="#e5e5e5")
        x, y = _at(tick, 0)
        pen.text((x - 10, y + 8), f"{tick:g}", fill="black", font=font)
        x, y = _at(0, tick)
        pen.text((x - 36, y - 8), f"{tick:g}", fill="black", font=font)
    pen.text((_at(0.3, 0)[0], SIZE[1] - 28), "KV bytes, share of dense", fill="black", font=font)


def _draw_line(pen: ImageDraw.ImageDraw, rows: Sequence[Leader], colour: str, *, dashed: bool) -> None:
    points = [_at(one.bytes, one.mean) for one in rows]
    for one, (x, _) in zip(rows, points, strict=True):
        pen.line((x, _at(0, one.low)[1], x, _at(0, one.high)[1]), fill=colour, width=1)
    for (x, y), (to_x, to_y) in pairwise(points):
        parts = 20 if dashed else 1
        for i in range(0, parts, 2):
            a, b = i / parts, (i + 1) / parts
            pen.line(
                (x + (to_x - x) * a, y + (to_y - y) * a, x + (to_x - x) * b, y + (to_y - y) * b), fill=colour, width=3
            )
    for x, y in points:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
