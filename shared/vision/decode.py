"""Bytes → an upright RGB picture: PNG, JPEG, WebP, TIFF and BMP, refused from the header when over a limit.

Whatever the file holds (1 to 16 bits, grey, palette, alpha, CMYK, any EXIF orientation), the answer is one uint8 array
(h, w, 3). Orientation is applied before anything else, alpha is flattened on white, samples of 16 bits keep their high
byte, and of an animation or a multi-page file the first picture is read and `first_of_many` is set.

Knows Pillow's parsers, each called directly: `Image.open` tries formats by a process-wide table and judges sizes by a
process-wide limit. Every call has its own state, so any number of threads may decode at once. Knows nothing about
base64, HTTP or models.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fovea.errors import FoveaError, Malformed, TooLarge, UnsupportedMedia
from shared.vision.format_detection import detect_format, webp_canvas
from shared.vision.limits import DEFAULT_BOUNDS, DecodeBounds, check_size

_PARSERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}

READABLE = tuple(_PARSERS)
"""Formats that `decode` reads."""

_ORIENTATION = 0x0112

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the picture upright."""

_TIFF_BITS, _TIFF_WHITE, _TIFF_PLANES, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 258, 262, 284, 322, 323


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An upright picture and what its file said.

    Attributes:
        pixels: RGB uint8 (h, w, 3), upright.
        format: One of `READABLE`.
        mode: Pillow's name for the samples in the file, for example `CMYK` or `I;16`.
        bit_depth: Bits per sample in the file.
        orientation: EXIF orientation 1 to 8; already applied.
        icc: ICC profile of the file, not applied.
        first_of_many: Whether the file holds further frames or pages, which were not read.
    """

    pixels: np.ndarray
    format: str
    mode: str
    bit_depth: int
    orientation: int
    icc: bytes | None
    first_of_many: bool

    @property
    def width(self) -> int:
        """Pixels from left to right, upright."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels from top to bottom, upright."""
        return int(self.pixels.shape[0])


def decode(data: bytes, bounds: DecodeBounds = DEFAULT_BOUNDS, *, page: str = "white") -> DecodedImage:
    """Read a picture; what is transparent shows the colour `page`.

    Raises:
        UnsupportedMedia: No format that is read here, or samples that have no place in 8-bit RGB.
        TooLarge: Bytes, pixels or a side over the bounds; nothing was decoded.
        Malformed: Empty, truncated or broken, or a side below the bounds.
    """
    kind = _kind(data, bounds)
    if kind == "WebP" and (canvas := webp_canvas(data)) != (0, 0):
        check_size(*canvas, bounds)
    try:
        image = _PARSERS[kind](io.BytesIO(data))
        width, height = _claimed(image)
        check_size(width, height, bounds)
        with bounds.memory.reserve(width * height * _decoded_bytes(image), f"A picture of {width:,}×{height:,} pixels"):
            return _read(image, kind, data, page)
    except FoveaError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"The picture is too large: {error}", hint="Send a smaller picture.") from error
    except Exception as error:  # broken bytes lead Pillow's parsers to a dozen unrelated exceptions
        hint = "Export it again, as grey or RGB of 8 or 16 bits, and check that it opens."
        raise Malformed(f"The {kind} picture is truncated, broken or of an odd kind: {error}.", hint=hint) from error


def _kind(data: bytes, bounds: DecodeBounds) -> str:
    """The format, once size and signature allow reading on."""
    if not data:
        raise Malformed("The picture is empty: it has 0 bytes.", hint="Send the bytes of an image file.")
    if len(data) > bounds.bytes:
        raise TooLarge(f"The picture has {len(data):,} bytes; the limit is {bounds.bytes:,}.")
    kind = detect_format(data)
    if kind not in _PARSERS:
        readable = ", ".join(READABLE)
        raise UnsupportedMedia(f"Not a picture that is read here: found {kind}.", hint=f"Send one of {readable}.")
    return kind


def _claimed(image: ImageFile) -> tuple[int, int]:
    """Width and height from the header; of a TIFF its tiles too, which are decoded whole however small the picture."""
    width, height = image.size
    if isinstance(image, TiffImageFile):
        width = max(width, int(image.tag_v2.get(_TIFF_TILE_WIDTH, 0)))
        height = max(height, int(image.tag_v2.get(_TIFF_TILE_HEIGHT, 0)))
    return width, height


def _decoded_bytes(image: ImageFile) -> int:
    """Bytes that decoding takes for each pixel: Pillow's samples, copies of them, and the RGB array."""
    if image.mode == "RGB":
        return 4 + 3
    return 4 + 4 + 3 + (8 if image.has_transparency_data or image.mode.startswith("I") else 0)


def _read(image: ImageFile, kind: str, data: bytes, page: str) -> DecodedImage:
    # Pillow itself turns a TIFF upright while loading, and drops the tag.
    turned = int(image.tag_v2.get(_ORIENTATION, 1)) if isinstance(image, TiffImageFile) else 1
    mode, depth = image.mode, _bit_depth(image, kind, data)
    if depth == 16 and isinstance(image, TiffImageFile) and image.tag_v2.get(_TIFF_PLANES) == 2:
        order = "B" if data.startswith(b"MM") else "L"
        for place, tile in enumerate(image.tile):  # of channels one after another Pillow takes each byte for a sample
            if tile.codec_name == "raw" and isinstance(tile.args, tuple) and mode in {"RGB", "RGBA"}:
                image.tile[place] = tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
    image.load()
    orientation = _orientation(image)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    pixels = np.asarray(_rgb(upright, page, depth))
    pixels = ~pixels if is_negative(image) else pixels
    icc = icc if isinstance(icc := image.info.get("icc_profile"), bytes) else None
    turned = orientation if orientation in _UPRIGHT else turned
    return DecodedImage(pixels, kind, mode, depth, turned, icc, bool(getattr(image, "is_animated", False)))


def _orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation; broken EXIF in a good picture is as good as none."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (as many kinds of error as there are ways to break EXIF)
        return 1
    return value if isinstance(value, int) else 1


def _bit_depth(image: ImageFile, kind: str, data: bytes) -> int:
    """Bits per sample, from the header; Pillow's mode does not tell for RGB of 16 bits."""
    if kind == "PNG":
        return data[24]
    if isinstance(image, TiffImageFile):
        return int(np.max(image.tag_v2.get(_TIFF_BITS, 1)))
    return 1 if image.mode == "1" else 8


def is_negative(image: ImageFile) -> bool:
    """Whether white is 0: of the TIFFs of which that is true, Pillow turns those around that have at most 8 bits."""
    return image.mode.startswith("I;16") and isinstance(image, TiffImageFile) and image.tag_v2.get(_TIFF_WHITE) == 0


def _rgb(image: Image.Image, page: str, depth: int) -> Image.Image:
    """Any samples → RGB: of 12 and 16 bits the highest 8 are kept, alpha is flattened on a colour."""
    if image.mode.startswith("I;16"):
        high = (np.asarray(image) >> depth - 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode in {"F", "I", "LAB"}:
        raise UnsupportedMedia(
            f"Samples of the kind {image.mode!r} (32 bits, floating point or LAB) have no fixed place in 0..255.",
            hint="Save the picture with 8 or 16 bits per channel.",
        )
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    flat = Image.new("RGB", layer.size, page)
    flat.paste(layer, mask=layer.getchannel("A"))
    return flat
