"""Boxes drawn on pictures, each class in a colour of its own, and pieces cut out along them.

Works on RGB uint8 arrays (h, w, 3) and never changes the one it is given.
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fovea.api.boxes import Box, Detection
from shared.vision.draw import Colour


def class_colour(kind: int) -> Colour:
    """The colour of a class: hues a golden angle apart, so that neighbouring ids differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.42 + kind * 0.381966) % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    pixels: np.ndarray, found: Sequence[Detection], *, labels: bool = True, stroke: int | None = None
) -> np.ndarray:
    """The picture with its boxes, the best on top; lines and letters grow with the picture unless `stroke` says."""
    image = Image.fromarray(pixels)
    pen, longest = ImageDraw.Draw(image), max(pixels.shape[:2])
    width, font = stroke or max(1, round(longest / 400)), ImageFont.load_default(max(10, round(longest / 50)))
    for each in reversed(found):
        pen.rectangle(_inside(each.box, image.width, image.height), outline=class_colour(each.class_id), width=width)
        if labels:
            _label(pen, each, font, image.size)
    return np.asarray(image)


def _inside(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """The box as Pillow wants it: corners in order, the last pixel included."""
    x1, y1, x2, y2 = box
    left, top = min(x1, width - 1), min(y1, height - 1)
    return left, top, max(min(x2, width) - 1, left), max(min(y2, height) - 1, top)


def _label(
    pen: ImageDraw.ImageDraw, each: Detection, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: tuple[int, int]
) -> None:
    """Name, track and score on a strip of the class's colour above the box, or inside where there is no room."""
    track = f" #{each.track_id}" if each.track_id is not None else ""
    text = f"{each.label}{track} {each.score:.2f}"
    left, top, right, bottom = pen.textbbox((0, 0), text, font)
    wide, high = right - left + 6, bottom - top + 6
    x = max(0.0, min(each.box[0], size[0] - wide))
    y = each.box[1] - high if each.box[1] >= high else each.box[1]
    tint = class_colour(each.class_id)
    ink = (0, 0, 0) if float(np.dot(tint, (0.299, 0.587, 0.114))) > 127 else (255, 255, 255)
    pen.rectangle((x, y, x + wide, y + high), fill=tint)
    pen.text((x + 3 - left, y + 3 - top), text, fill=ink, font=font)


def crop_box(pixels: np.ndarray, box: Box) -> np.ndarray:
    """Pixels inside a box, whole ones and at least one."""
    height, width = pixels.shape[:2]
    left, top = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    right, bottom = max(math.ceil(box[2]), left + 1), max(math.ceil(box[3]), top + 1)
    return pixels[top:bottom, left:right]
