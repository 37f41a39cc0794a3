"""Pictures from bytes, a path or an open file, with the media type that their first bytes show. Decodes nothing."""

import os
from pathlib import Path
from typing import IO, Any

from fovea.errors import NotFound, UnsupportedMedia

PictureLike = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes]
"""Encoded bytes, the path of a file, or a file opened for reading bytes."""


def read_picture(source: PictureLike) -> tuple[str, bytes, str]:
    """Read a picture from bytes, a path or an open file, as a multipart part: file name, bytes and media type.

    Raises NotFound: there is no such file; UnsupportedMedia: it is an array, or a file opened as text.
    """
    name: Any = "picture"
    data: Any
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        name, data = source, read_path(Path(source))
    else:
        name, data = getattr(source, "name", name), getattr(source, "read", lambda: source)()
    if not isinstance(data, bytes):
        hint = "Give encoded bytes, a path, or a file opened with mode 'rb'."
        raise UnsupportedMedia(f"The picture is not encoded: it is {type(data).__name__!r}.", hint=hint)
    return Path(str(name)).name.encode(errors="replace").decode(), data, detect_media_type(data)


def detect_media_type(data: bytes) -> str:
    """Detect the media type from the first bytes; `application/octet-stream` when they show none."""
    signatures = (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
        (b"BM", "image/bmp"),
    )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for start, name in signatures if data.startswith(start)), "application/octet-stream")


def read_path(path: Path) -> bytes:
    """Read a file. Raises NotFound: there is none, or it can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {str(path)!r}.") from error
    except OSError as error:
        raise NotFound(f"{str(path)!r} can't be read: {error.strerror}.") from error
