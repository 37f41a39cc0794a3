"""Pictures that nobody should trust, made on the spot: refused ones with their status, and odd ones that are fine.

`refused()` and `odd()` feed every test that takes pictures from outside: decoding, contracts, services, the gateway.
All are small; what is huge about them is only what they claim.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

__all__ = ["OddPicture", "RefusedPicture", "encoded", "odd", "png", "quadrants", "refused"]

CORNERS = {
    "top-left": (200, 30, 30), "top-right": (30, 200, 30), "low-left": (30, 30, 200), "low-right": (220, 220, 40),
}  # fmt: skip
"""Colours of `quadrants`, by which a test sees how a picture was turned."""


@dataclass(frozen=True, slots=True)
class RefusedPicture:
    """Bytes that must be answered by a 4xx, and by which."""

    name: str
    data: bytes
    status: int


@dataclass(frozen=True, slots=True)
class OddPicture:
    """Bytes that must be read; the upright picture shows `quadrants` unless `plain`."""

    name: str
    data: bytes
    size: tuple[int, int]
    plain: bool = False


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """An RGB picture whose four quarters have the colours of `CORNERS`."""
    page = Image.new("RGB", (width, height))
    half = (width // 2, height // 2)
    for (x, y), colour in zip(((0, 0), (half[0], 0), (0, half[1]), half), CORNERS.values(), strict=True):
        page.paste(colour, (x, y, x + half[0], y + half[1]))
    return page


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, body: bytes, *extra: tuple[bytes, bytes], depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with any claims in its header: `body` is the raw (uncompressed) pixel data, `extra` further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    made = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), *extra, (b"IDAT", zlib.compress(body, 9)), (b"IEND", b"")):
        made += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return made


def _webp_claiming(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(side: int, tile: int | None = None) -> bytes:
    """A square grey TIFF in one strip or one tile, with its tags written by hand; its pixels lie beyond its end."""
    fixed = ((256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1))
    strip = ((273, 4, 999), (279, 4, 10**6))
    tiled = ((322, 4, tile), (323, 4, tile), (324, 4, 999), (325, 4, 10**6))
    entries = (*fixed, *(strip if tile is None else tiled))
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", n, kind, 1, v) for n, kind, v in entries)
    return b"II*\x00" + struct.pack("<I", 8) + ifd + struct.pack("<I", 0)


def _bmp_claiming(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@cache
def refused() -> tuple[RefusedPicture, ...]:
    """Everything that must be refused, each with the status of its problem."""
    page, noise = quadrants(), np.random.default_rng(7).integers(0, 256, 4096, dtype=np.uint8).tobytes()
    whole = {kind: encoded(page, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")}
    swapped, text = bytearray(whole["PNG"]), b"key\0\0" + zlib.compress(bytes(8_000_000))
    swapped[60] ^= 0xFF
    cut = tuple(RefusedPicture(f"truncated-{k.lower()}", data[: len(data) // 2], 400) for k, data in whole.items())
    headers = tuple(RefusedPicture(f"header-only-{k.lower()}", data[:20], 400) for k, data in whole.items())
    return (
        RefusedPicture("empty", b"", 400), RefusedPicture("one-byte", b"\x89", 415), *cut, *headers,
        RefusedPicture("broken-crc", bytes(swapped), 400),
        RefusedPicture("magic-then-noise", b"\x89PNG\r\n\x1a\n" + noise, 400),
        RefusedPicture("bomb-png", png(20_000, 20_000, bytes(2_000_000)), 413),
        RefusedPicture("bomb-webp", _webp_claiming(16_000, 10_000), 413),
        RefusedPicture("bomb-tiff", _tiff(100_000), 413),
        RefusedPicture("bomb-tiff-tile", _tiff(8, tile=60_000), 413),
        RefusedPicture("bomb-bmp", _bmp_claiming(50_000, 50_000), 413),
        RefusedPicture("bomb-text-chunk", png(8, 8, bytes(200), (b"zTXt", text)), 400),
        RefusedPicture("no-pixels-png", png(0, 0, b""), 400),
        RefusedPicture("text-as-png", b"This is not a picture, whatever its name says.\n" * 20, 415),
        RefusedPicture("html-as-jpeg", b"<!DOCTYPE html><html><body>404</body></html>", 415),
        RefusedPicture("json", b'{"image": "aGVsbG8="}', 415), RefusedPicture("gif", encoded(page, "GIF"), 415),
        RefusedPicture("pdf", b"%PDF-1.7\n" + noise, 415),
        RefusedPicture("svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', 415),
        RefusedPicture("noise", b"\x00\x01" + noise, 415),
        RefusedPicture("float-tiff", encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), 415),
    )  # fmt: skip


def _turned(page: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The page as a camera stores it under an EXIF orientation, and the EXIF that states it."""
    back, exif = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}, Image.Exif()
    exif[0x0112] = orientation
    return page.transpose(Image.Transpose(back[orientation])) if orientation in back else page, exif


@cache
def odd() -> tuple[OddPicture, ...]:
    page, size = quadrants(), (64, 48)
    deep = b"\0" + b"\x40\x07\x80\x07\xc0\x07" * size[0]  # a row of 16 bits a colour
    clear = page.convert("RGBA")
    clear.putalpha(255)
    sixteen = Image.fromarray((np.asarray(page.convert("L")).astype(np.uint16) << 8) + 77)
    frames = {"save_all": True, "append_images": [Image.new("RGB", size)]}
    turned = tuple(
        OddPicture(f"exif-{n}-{kind.lower()}", encoded(stored, kind, exif=exif, **more), size)
        for kind, more in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}))
        for n in range(1, 9)
        for stored, exif in (_turned(page, n),)
    )
    forms = (
        *((kind.lower(), page, kind, {}) for kind in ("PNG", "WEBP", "TIFF", "BMP")),
        ("jpeg", page, "JPEG", {"quality": 95}), ("cmyk-jpeg", page.convert("CMYK"), "JPEG", {"quality": 95}),
        ("cmyk-tiff", page.convert("CMYK"), "TIFF", {}), ("palette-png", page.quantize(8), "PNG", {}),
        ("alpha-png", clear, "PNG", {}), ("alpha-webp", clear, "WEBP", {"lossless": True}),
        ("jpeg-progressive", page, "JPEG", {"quality": 95, "progressive": True}),
        ("lzw-tiff", page, "TIFF", {"compression": "tiff_lzw"}), ("animated-png", page, "PNG", frames),
        ("animated-webp", page, "WEBP", {"lossless": True, **frames}), ("paged-tiff", page, "TIFF", frames),
    )  # fmt: skip
    plain = {
        "grey-png": page.convert("L"), "grey-alpha-png": page.convert("LA"), "two-colour-png": page.convert("1"),
        "16-bit-png": sixteen, "one-pixel": Image.new("RGB", (1, 1)), "thin": Image.new("RGB", (3000, 1)),
    }  # fmt: skip
    return (
        *turned, *(OddPicture(name, encoded(image, kind, **how), size) for name, image, kind, how in forms),
        *(OddPicture(name, encoded(image, "PNG"), image.size, plain=True) for name, image in plain.items()),
        OddPicture("16-bit-tiff", encoded(sixteen, "TIFF"), size, plain=True),
        OddPicture("16-bit-rgb-png", png(*size, deep * size[1], depth=16), size, plain=True),
    )  # fmt: skip
