"""Vector drawing of rectangles, lines and texts, with SVG and PNG output. Knows shapes; knows no report."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK: Colour = (38, 42, 51)
GREY: Colour = (120, 126, 138)
EMPTY: Colour = (232, 232, 236)
"""Cells without a value."""

BLUE: Colour = (33, 102, 172)
ORANGE: Colour = (200, 95, 20)
"""The two ends of diverging scales: distinct with every common kind of colour blindness, and in print."""

_LIGHT: Colour = (247, 250, 255)
_STOPS: tuple[Colour, ...] = (_LIGHT, (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
"""One hue from light to dark: more is darker."""

MAX_PNG_SIDE = 8000
"""Pixels; a longer PNG is scaled down."""


def sequential(share: float | None) -> Colour:
    """Return the colour of a share 0…1 of the largest value; grey for None."""
    if share is None:
        return EMPTY
    position = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(position), len(_STOPS) - 2)
    return _blend(_STOPS[low], _STOPS[low + 1], position - low)


def diverging(share: float | None) -> Colour:
    """Return the colour of a share −1…1: orange below zero, blue above, white at zero."""
    if share is None:
        return EMPTY
    return _blend((252, 252, 252), BLUE if share > 0 else ORANGE, min(abs(share), 1.0))


def _blend(a: Colour, b: Colour, share: float) -> Colour:
    r, g, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, blue


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle, filled or transparent; `title` shows on hover, `link` is followed on a click (SVG only)."""

    x: float
    y: float
    w: float
    h: float
    fill: Colour | None
    title: str = ""
    link: str = ""

    def svg(self) -> str:
        """Return the SVG element."""
        rect = (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.w:g}" height="{self.h:g}" '
            f'fill="{_hex(self.fill) if self.fill else "transparent"}">'
            f"{_title(self.title)}</rect>"
        )
        return f'<a href="{escape(self.link)}">{rect}</a>' if self.link else rect

    def paint(self, image: Image.Image, scale: float) -> None:
        """Draw on pixels."""
        box = [self.x * scale, self.y * scale, (self.x + self.w) * scale - 1, (self.y + self.h) * scale - 1]
        if self.fill and box[2] >= box[0] and box[3] >= box[1]:
            ImageDraw.Draw(image).rectangle(box, fill=self.fill)


@dataclass(frozen=True, slots=True)
class Line:
    """A line."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: Colour = GREY
    width: float = 1
    title: str = ""

    def svg(self) -> str:
        """Return the SVG element."""
        return (
            f'<line x1="{self.x1:g}" y1="{self.y1:g}" x2="{self.x2:g}" y2="{self.y2:g}" '
            f'stroke="{_hex(self.colour)}" stroke-width="{self.width:g}">{_title(self.title)}</line>'
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        """Draw on pixels."""
        ends = [self.x1 * scale, self.y1 * scale, self.x2 * scale, self.y2 * scale]
        ImageDraw.Draw(image).line(ends, fill=self.colour, width=max(round(self.width * scale), 1))


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `anchor` is the end that stands at x, `turned` text reads upwards."""

    x: float
    y: float
    text: str
    size: float = 11
    colour: Colour = INK
    anchor: str = "start"
    turned: bool = False

    def svg(self) -> str:
        """Return the SVG element."""
        turn = f' transform="rotate(-90 {self.x:g} {self.y:g})"' if self.turned else ""
        text = escape(_replace_control_characters(self.text))
        return (
            f'<text x="{self.x:g}" y="{self.y:g}" font-size="{self.size:g}" fill="{_hex(self.colour)}" '
            f'text-anchor="{self.anchor}"{turn} xml:space="preserve">{text}</text>'
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        """Draw on pixels."""
        font = _font(max(round(self.size * scale), 6))
        text = _replace_control_characters(self.text).translate(_MISSING_GLYPHS)
        if not self.turned:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[self.anchor]
            position = (self.x * scale, self.y * scale)
            ImageDraw.Draw(image).text(position, text, fill=self.colour, font=font, anchor=anchor)
            return
        left, top, right, bottom = font.getbbox(text or " ", anchor="ls")
        label = Image.new("RGBA", (max(round(right - left), 1), max(round(bottom - top), 1)), (255, 255, 255, 0))
        ImageDraw.Draw(label).text((-left, -top), text, fill=self.colour, font=font, anchor="ls")
        label = label.rotate(90, expand=True)
        up = {"start": label.height, "middle": label.height / 2, "end": 0}[self.anchor]
        image.paste(label, (round(self.x * scale + top), round(self.y * scale - up)), label)


Shape = Rect | Line | Text


@dataclass
class Drawing:
    """Shapes on white, with alternative text."""

    width: float
    height: float
    alt: str = ""
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Draw on top."""
        self.shapes += shapes

    def svg(self) -> str:
        """Return the SVG, without scripts and styles."""
        inside = "".join(shape.svg() for shape in self.shapes)
        # The links in an image can't be reached by a screen reader; those in a group can.
        role = "group" if any(isinstance(shape, Rect) and shape.link for shape in self.shapes) else "img"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" role="{role}" '
            f'aria-label="{escape(_replace_control_characters(self.alt))}" font-family="system-ui, sans-serif">'
            f'{_title(self.alt)}<rect width="100%" height="100%" fill="#ffffff"/>{inside}</svg>'
        )

    def png(self, scale: float = 2) -> bytes:
        """Return the PNG, with `scale` pixels per unit."""
        scale = min(scale, MAX_PNG_SIDE / max(self.width, self.height, 1))
        image = Image.new("RGB", (max(round(self.width * scale), 1), max(round(self.height * scale), 1)), "white")
        for shape in self.shapes:
            shape.paint(image, scale)
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return out.getvalue()


def stack_drawings(drawings: Sequence[Drawing], gap: float = 24) -> Drawing:
    """Stack drawings one below the other."""
    whole = Drawing(max((d.width for d in drawings), default=1), 0, " ".join(d.alt for d in drawings))
    for drawing in drawings:
        whole.shapes += [_move_down(shape, whole.height) for shape in drawing.shapes]
        whole.height += drawing.height + gap
    return whole


def _move_down(shape: Shape, by: float) -> Shape:
    return replace(shape, **{name: getattr(shape, name) + by for name in ("y", "y1", "y2") if hasattr(shape, name)})


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _title(text: str) -> str:
    return f"<title>{escape(_replace_control_characters(text))}</title>" if text else ""


def _replace_control_characters(text: str) -> str:
    """Replace what XML can't hold: control characters by their symbols, two that no text has by a question mark."""
    return text.translate(_SYMBOLS)


_SYMBOLS = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}
_MISSING_GLYPHS = str.maketrans({"≥": ">=", "⏎": "\\n", "→": "->"})
"""Glyphs that the raster font lacks."""


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
