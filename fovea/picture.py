"""Pictures from bytes, a path or an open file, with the media type that their first bytes show. Decodes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fovea.errors import NotFound, UnsupportedMedia

PictureLike = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes]
"""Encoded bytes, the path of a file, or a file opened for reading bytes."""


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """An encoded picture and the file name that it is sent under."""

    name: str
    data: bytes

    @property
    def part(self) -> tuple[str, bytes, str]:
        """The picture as a multipart part."""
        return self.name, self.data, detect_media_type(self.data)


def read_picture(source: PictureLike) -> EncodedPicture:
    """Read a picture from bytes, a path or an open file.

    Raises:
        NotFound: There is no such file.
        UnsupportedMedia: The file was opened as text.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return EncodedPicture("picture", bytes(source))
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source))
    data = source.read()
    if not isinstance(data, bytes):
        raise UnsupportedMedia("The picture was opened as text.", hint="Open it with mode 'rb'.")
    return EncodedPicture(Path(str(getattr(source, "name", "picture"))).name, data)


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


def _read_path(path: Path) -> EncodedPicture:
    try:
        return EncodedPicture(path.name, path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {str(path)!r}.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise NotFound(f"{str(path)!r} can't be read: {error.strerror}.") from error
