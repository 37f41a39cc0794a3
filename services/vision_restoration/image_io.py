"""Pictures of 8 and 16 bits in and out of files, with their colour profile and EXIF.

Reading and refusing is `shared.vision.decode`'s; this adds what restoration must not lose: the low byte of 16-bit
samples, which Pillow drops from coloured PNG and TIFF, and what a file says about its picture.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fovea.errors import InvalidOption
from shared.vision.decode import decode, is_negative
from shared.vision.limits import DecodeBounds

Format = Literal["png", "jpeg", "webp"]

_PARSERS: Mapping[str, Callable[[io.BytesIO], ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}

_ORIENTATION = 0x0112

_DESCRIPTIVE = frozenset({270, 271, 272, 305, 306, 315, 33432, 34665, 34853})
"""Tags of a TIFF that describe its picture; the others describe the file and would be wrong in another one."""

_LOW = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B",
}
"""How Pillow unpacks the high bytes of 16-bit samples → the layout as which it unpacks the low ones."""

_LONGEST_EXIF = 65_000
_WEBP_SIDE, _JPEG_SIDE = 16_383, 65_535
_PNG_LEVEL, _SHALLOW = 1, "Samples were read with 8 of their 16 bits."


@dataclass(frozen=True, slots=True, eq=False)
class PictureFile:
    """An upright picture and what is kept of its file.

    Attributes:
        pixels: RGB (h, w, 3), uint8 or uint16.
        format: `png`, `jpeg`, `webp`, `tiff` or `bmp`.
        icc: Colour profile, where it is one of RGB.
        exif: EXIF with the orientation set upright.
        notes: Losses of the conversion.
    """

    pixels: np.ndarray
    format: str
    icc: bytes | None = None
    exif: bytes | None = None
    notes: list[str] = field(default_factory=list)


def read_image(data: bytes, bounds: DecodeBounds) -> PictureFile:
    """Read a picture with all its bits. Raises UnsupportedMedia, TooLarge, Malformed: as `shared.vision.decode`."""
    picture = decode(data, bounds)
    notes = ["Only the first frame was read."] if picture.first_of_many else []
    is_keyed = picture.bit_depth < 16 and _PARSERS[picture.format](io.BytesIO(data)).has_transparency_data
    is_clear = is_keyed or picture.mode.endswith("A")  # a transparent colour of 16 bits stays that colour
    notes += ["The alpha channel was left out: what was transparent is white."] if is_clear else []
    pixels, icc = picture.pixels, picture.icc
    if picture.bit_depth == 16:
        deep = _deep(data, picture.format)
        pixels, notes = (deep, notes) if deep is not None else (pixels, [*notes, _SHALLOW])
    if icc is not None and icc[16:20] != b"RGB ":
        icc, notes = None, [*notes, "The colour profile is not one of RGB, and was left out."]
    exif = _exif(data, picture.format)
    if exif is not None and len(exif) > _LONGEST_EXIF:
        exif, notes = None, [*notes, "The EXIF data is too long to be kept."]
    return PictureFile(pixels, picture.format.lower(), icc, exif, notes)


def write_image(picture: PictureFile, form: Format, quality: int) -> bytes:
    """A picture as a file, its profile and EXIF inside.

    Raises InvalidOption: the format can't hold a picture of that size, or 16 bits.
    """
    height, width = picture.pixels.shape[:2]
    longest = {"webp": _WEBP_SIDE, "jpeg": _JPEG_SIDE}.get(form)
    if longest is not None and max(height, width) > longest:
        raise InvalidOption(f"A {form} has sides of at most {longest:,} pixels.", hint="Ask for png.", field="format")
    if picture.pixels.dtype == np.uint16:
        if form != "png":
            raise InvalidOption(f"A {form} has no 16 bits.", hint="Ask for png, or bit_depth=8.", field="bit_depth")
        return deep_png(picture)
    image, out = Image.fromarray(picture.pixels), io.BytesIO()
    knobs = {"png": {"compress_level": _PNG_LEVEL}, "jpeg": {"quality": quality, "subsampling": 0}}
    image.save(out, form, icc_profile=picture.icc, exif=picture.exif or b"", **knobs.get(form, {"quality": quality}))
    return out.getvalue()


def deep_png(picture: PictureFile) -> bytes:
    """A PNG of 16 bits per channel, which Pillow does not write."""
    height, width = picture.pixels.shape[:2]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))]
    if picture.icc is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if picture.exif is not None:
        chunks.append((b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", part) for part in _packed(picture.pixels)]
    chunks.append((b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _packed(pixels: np.ndarray) -> Iterator[bytes]:
    """The compressed rows, a band at a time, each row as its difference from the one above it (filter 2)."""
    packer = zlib.compressobj(_PNG_LEVEL)
    above = np.zeros((1, pixels.shape[1] * 6), np.uint8)
    step = max(1, (1 << 22) // above.size)
    for top in range(0, len(pixels), step):
        rows = pixels[top : top + step].astype(">u2").view(np.uint8).reshape(-1, above.size)
        lines = np.full((len(rows), above.size + 1), 2, np.uint8)
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=lines[:, 1:])
        above = rows[-1:]
        yield packer.compress(lines.tobytes())
    yield packer.flush()


def _deep(data: bytes, kind: str) -> np.ndarray | None:
    """All 16 bits (h, w, 3) of an upright picture, or None where its samples are laid out in a way not read here."""
    high = _PARSERS[kind](io.BytesIO(data))
    if high.mode.startswith("I;16"):
        grey = np.asarray(ImageOps.exif_transpose(high)).astype(np.uint16)
        return np.repeat((~grey if is_negative(high) else grey)[..., None], 3, axis=2)
    low = _PARSERS[kind](io.BytesIO(data))
    if not all(_rawmode(tile[3]) in _LOW for tile in high.tile):
        return None
    low.tile = [tile._replace(args=_with_rawmode(tile[3])) for tile in low.tile]
    deep = np.asarray(ImageOps.exif_transpose(high)).astype(np.uint16)
    deep <<= 8
    deep |= np.asarray(ImageOps.exif_transpose(low))
    return deep if deep.shape[2] == 3 else _on_white(deep)


def _rawmode(args: tuple[Any, ...] | str | None) -> object:
    """The layout in the arguments of one of Pillow's decoders: they are it, or begin with it."""
    return args[0] if isinstance(args, tuple) else args


def _with_rawmode(args: tuple[Any, ...] | str | None) -> tuple[Any, ...] | str:
    low = _LOW[str(_rawmode(args))]
    return (low, *args[1:]) if isinstance(args, tuple) else low


def _on_white(deep: np.ndarray) -> np.ndarray:
    """RGBA of 16 bits → RGB on a white page, band by band."""
    flat = np.empty((*deep.shape[:2], 3), np.uint16)
    for top in range(0, len(deep), 256):
        band = deep[top : top + 256].astype(np.float32)
        alpha = band[..., 3:] / 65_535
        flat[top : top + 256] = np.rint(band[..., :3] * alpha + 65_535 * (1 - alpha))
    return flat


def _exif(data: bytes, kind: str) -> bytes | None:
    """The file's EXIF, upright; None where there is none, or it is broken."""
    try:
        exif = _PARSERS[kind](io.BytesIO(data)).getexif()  # headers only: the pixels stay undecoded
        if kind == "TIFF":
            for tag in [tag for tag in exif if tag not in _DESCRIPTIVE]:
                del exif[tag]
        if not exif:
            return None
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return exif.tobytes()
    except Exception:  # noqa: BLE001 (as many kinds of error as there are ways to break EXIF)
        return None
