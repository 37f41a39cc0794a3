"""Draws answers on pictures: tints and outlines of masks, labels, pictures side by side; and encodes the result.

Works on RGB uint8 arrays (h, w, 3) and never changes the one it is given. Knows no models and no wire types.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from shared.vision.mask_regions import occupied_window

Colour = tuple[int, int, int]

Encoding = Literal["image/png", "image/jpeg", "image/webp"]

ENCODINGS: tuple[Encoding, ...] = ("image/png", "image/jpeg", "image/webp")
"""Content types that `encode` writes."""

# Level 1 is 5 times faster than Pillow's default on photographs, for a tenth more bytes.
_PNG_LEVEL = 1


def encode(pixels: np.ndarray, media_type: str = "image/png", *, quality: int = 90, icc: bytes | None = None) -> bytes:
    """An RGB (h, w, 3) or grey (h, w) uint8 array as a file.

    Raises ValueError: the content type is not one of `ENCODINGS`.
    """
    knobs = {
        "image/png": {"compress_level": _PNG_LEVEL},
        "image/jpeg": {"quality": quality, "subsampling": 0},  # full chroma: half would smear thin coloured lines
        "image/webp": {"quality": quality},
    }
    if media_type not in knobs:
        raise ValueError(f"{media_type} is not one of {', '.join(ENCODINGS)}")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, media_type.removeprefix("image/"), icc_profile=icc, **knobs[media_type])
    return out.getvalue()


def tint_mask(
    pixels: np.ndarray, mask: np.ndarray, colour: Colour = (0, 220, 130), opacity: float = 0.35
) -> np.ndarray:
    """The picture with the pixels of a mask (h, w) bool drawn towards a colour."""
    found = pixels.copy()
    rows, columns = occupied_window(mask)
    window, inside = found[rows, columns], mask[rows, columns]
    for channel, value in enumerate(colour):
        mixed = np.rint(np.arange(256) * (1 - opacity) + value * opacity).astype(np.uint8)
        plane = window[..., channel]
        np.copyto(plane, mixed[plane], where=inside)
    return found


def outline_mask(pixels: np.ndarray, mask: np.ndarray, colour: Colour = (0, 220, 130), width: int = 2) -> np.ndarray:
    """The picture with the inner edge of a mask (h, w) bool in a colour, `width` pixels wide."""
    found = pixels.copy()
    rows, columns = occupied_window(mask)
    inside = mask[rows, columns]
    kept = ndimage.binary_erosion(inside, iterations=width)
    found[rows, columns][inside & ~kept] = colour
    return found


def draw_label(
    pixels: np.ndarray, labels: Iterable[tuple[float, float, str]], colour: Colour = (0, 220, 130), size: int = 16
) -> np.ndarray:
    """The picture with texts on boxes of a colour; (x, y) is the lower left corner, moved so that all is inside."""
    image = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 127 else (255, 255, 255)
    for x, y, text in labels:
        width, height = pen.textlength(text, font) + 6, size + 6
        left = max(0.0, min(x, image.width - width))
        top = max(0.0, min(y - height, image.height - height))
        pen.rectangle((left, top, left + width, top + height), fill=colour)
        pen.text((left + 3, top + 3), text, fill=ink, font=font)
    return np.asarray(image)


def side_by_side(pictures: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """Pictures in one row on white, in their own sizes, aligned at the top. Raises ValueError: there is no picture."""
    if not pictures:
        raise ValueError("there is no picture to put into the row")
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    page, left = np.full((height, width, 3), 255, np.uint8), 0
    for picture in pictures:
        page[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return page
