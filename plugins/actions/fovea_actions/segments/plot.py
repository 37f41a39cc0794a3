"""The picture of an answer about a video: curves of start and end over time, segments, and the confidence map.

Knows the wire type and how to draw; knows no network.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fovea_actions.schema import ActionsOut, Curves, Proposal

WIDTH, MARGIN, CURVES, BAR, MAP = 960, 48, 140, 20, 320
SHOWN = 10
"""Segments drawn: the best ones."""

_INK, _PALE, _START, _END = (40, 44, 52), (226, 230, 236), (38, 128, 90), (196, 60, 60)


def draw_timeline(answer: ActionsOut) -> np.ndarray:
    """The picture (h, w, 3): from top to bottom the curves, the best segments, the confidence map.

    The answer must hold its curves and its confidence.
    """
    shown = answer.proposals[:SHOWN]
    height = MARGIN + CURVES + BAR * (len(shown) + 2) + MAP + 2 * MARGIN
    page = Image.new("RGB", (WIDTH, height), (255, 255, 255))
    pen = ImageDraw.Draw(page)
    top = _curves(pen, answer.curves or Curves(start=[], end=[]), MARGIN)
    top = _bars(pen, shown, answer.duration, top + 8)
    top = _axis(pen, answer.duration, top)
    _confidence(page, pen, np.array(answer.confidence or [[0.0]]), top + 24)
    return np.asarray(page)


def _x(share: float) -> float:
    """Horizontal place of a share of the video."""
    return MARGIN + share * (WIDTH - 2 * MARGIN)


def _curves(pen: ImageDraw.ImageDraw, curves: Curves, top: int) -> int:
    """Both curves in one box, 0 below and 1 above."""
    pen.rectangle((_x(0), top, _x(1), top + CURVES), outline=_PALE)
    font = ImageFont.load_default(14)
    for index, (name, values, colour) in enumerate((("start", curves.start, _START), ("end", curves.end, _END))):
        left = _x(0) + 90 * index
        pen.rectangle((left, top - 14, left + 14, top - 11), fill=colour)
        pen.text((left + 20, top - 22), name, fill=colour, font=font)
        points = [(_x((i + 0.5) / len(values)), top + CURVES * (1 - value)) for i, value in enumerate(values)]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
    return top + CURVES


def _bars(pen: ImageDraw.ImageDraw, shown: list[Proposal], duration: float, top: int) -> int:
    """One bar a segment, darker for a better score."""
    best, font = max((p.score for p in shown), default=1.0) or 1.0, ImageFont.load_default(12)
    for proposal in shown:
        share = 0.25 + 0.75 * proposal.score / best
        colour = tuple(round(255 - (255 - c) * share) for c in (40, 90, 200))
        left, right = _x(proposal.start / duration), _x(proposal.end / duration)
        pen.rectangle((left, top, max(right, left + 2), top + BAR - 5), fill=colour)
        text = " ".join([*(proposal.label or "").split(), f"{proposal.score:.3f}"])  # in one line
        room = pen.textlength(text, font)
        pen.text((min(right + 4, WIDTH - room - 2), top), text, fill=_INK, font=font)
        top += BAR
    return top


def _axis(pen: ImageDraw.ImageDraw, duration: float, top: int) -> int:
    """Seconds at five places."""
    font = ImageFont.load_default(12)
    for share in (0, 0.25, 0.5, 0.75, 1):
        pen.line((_x(share), top, _x(share), top + 5), fill=_INK)
        text = f"{share * duration:.4g} s"
        pen.text((_x(share) - pen.textlength(text, font) / 2, top + 6), text, fill=_INK, font=font)
    pen.line((_x(0), top, _x(1), top), fill=_INK)
    return top + BAR


def _confidence(page: Image.Image, pen: ImageDraw.ImageDraw, confidence: np.ndarray, top: int) -> None:
    """The map: start downwards, end to the right, dark where a segment is likely."""
    shades = np.rint(255 * (1 - confidence[..., None] * np.array([0.85, 0.6, 0.2]))).astype(np.uint8)
    page.paste(Image.fromarray(shades).resize((MAP, MAP), Image.Resampling.NEAREST), (MARGIN, top))
    pen.rectangle((MARGIN, top, MARGIN + MAP, top + MAP), outline=_INK)
    font = ImageFont.load_default(14)
    pen.text((MARGIN + MAP + 12, top), "confidence", fill=_INK, font=font)
    pen.text((MARGIN + MAP + 12, top + 20), "start: downwards, end: to the right", fill=_INK, font=font)
