"""Format of a file, by its first bytes. Knows signatures, and where a WebP states its canvas; parses nothing."""

_LEADING = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"\x93NUMPY", "NPY"),
    (b"\x1aE\xdf\xa3", "Matroska video"),
)

_TEXTUAL = ((b"<svg", "SVG"), (b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"), (b"{", "JSON"))

_BRANDS = ((b"avi", "AVIF"), (b"hei", "HEIC"), (b"hev", "HEIC"), (b"mif", "HEIC"), (b"msf", "HEIC"))


def detect_format(data: bytes) -> str:
    """The kind of file in a word or two, for example `PNG`, `PDF`, `text`, `nothing` or `unknown binary data`."""
    if not data:
        return "nothing"
    for magic, name in _LEADING:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF":
        return "WebP" if data[8:12] == b"WEBP" else "RIFF audio or video"
    if data[4:8] == b"ftyp":
        return next((name for brand, name in _BRANDS if data[8:11] == brand), "MP4 video")
    if data[128:132] == b"DICM":
        return "DICOM"
    return _text(data[:512]) or "unknown binary data"


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP claims, or (0, 0) where its first chunk is cut off or unknown.

    Pillow's WebP parser makes room for the canvas when it opens a file, so this must be known before.
    """
    chunk, head = data[12:16], data[20:30]
    if chunk == b"VP8X" and len(head) == 10:
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if chunk == b"VP8L" and len(head) >= 5:
        packed = int.from_bytes(head[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(head) == 10:
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return 0, 0


def _text(head: bytes) -> str | None:
    """The kind of text, or None for anything else."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for tag, name in _TEXTUAL:
        if start.startswith(tag):
            return name
    try:
        # A character cut in two at the end of `head` is not a sign of binary data.
        letters = head.decode("utf-8", errors="strict" if len(head) < 512 else "ignore")
    except UnicodeDecodeError:
        return None
    return "text" if all(c.isprintable() or c.isspace() for c in letters) else None
