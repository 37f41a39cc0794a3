"""Heatmaps of numbers between 0 and 1: rows are depths, columns lengths. Knows only pixels."""

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

CELL, MARGIN = 48, 64


def draw_heatmap(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """A PNG: `values` [row][column] from red (0) over yellow to green (1), each with its number."""
    size = (MARGIN + CELL * len(columns) + 8, MARGIN // 2 + CELL * len(rows) + 24)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for y, (label, line) in enumerate(zip(rows, values, strict=True)):
        top = MARGIN // 2 + y * CELL
        pen.text((6, top + CELL // 2 - 6), label, fill="black")
        for x, value in enumerate(line):
            left, share = MARGIN + x * CELL, min(max(value, 0.0), 1.0)
            colour = (int(230 * min(2 - 2 * share, 1)), int(190 * min(2 * share, 1)), 60)
            pen.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=colour)
            pen.text((left + 10, top + CELL // 2 - 6), f"{share:.2f}", fill="black")
    for x, label in enumerate(columns):
        pen.text((MARGIN + x * CELL + 6, MARGIN // 2 + CELL * len(rows) + 4), label, fill="black")
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def draw_contact_sheet(maps: Mapping[str, bytes], columns: int) -> bytes:
    """Several pictures of `draw_heatmap` on one, each under its name: a PNG, `columns` in a row."""
    pictures = {name: Image.open(io.BytesIO(data)) for name, data in maps.items()}
    width = max(*(p.width for p in pictures.values()), 6 * max(map(len, pictures)) + 8)
    height = max(p.height for p in pictures.values()) + 20
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (width * columns, height * rows), "white")
    pen = ImageDraw.Draw(whole)
    for at, (name, picture) in enumerate(pictures.items()):
        left, top = at % columns * width, at // columns * height
        pen.text((left + 6, top + 4), name, fill="black")
        whole.paste(picture, (left, top + 20))
    out = io.BytesIO()
    whole.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
