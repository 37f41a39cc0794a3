"""Pictures as people name them on a command line: a file, a folder, a pattern, a URL, or `-` for standard input.

Knows where bytes come from; knows no gateway.
"""

from __future__ import annotations

import asyncio
import glob
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx2

from shared.errors import FoveaError, Malformed, NotFound, TooLarge

__all__ = ["ImageSource", "find_images"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
"""Files of a folder that are taken for pictures."""

MAX_FETCH_BYTES = 64 * 2**20
"""Largest picture that is fetched; the gateway's own default for a body."""

FETCH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One picture, not read yet.

    Attributes:
        said: How the user named it, or the path it was found at.
        stem: Name for what is written about it; no two of one command are the same.
    """

    said: str
    stem: str

    async def read(self) -> bytes:
        """Its bytes.

        Raises:
            NotFound: The file or the URL can't be read.
            TooLarge: The URL holds more than `MAX_FETCH_BYTES`.
            Malformed: There is nothing in it.
        """
        if self.said == "-":
            data = bytes(await asyncio.to_thread(sys.stdin.buffer.read))
        elif _is_url(self.said):
            data = await _fetch(self.said)
        else:
            data = await asyncio.to_thread(_read, Path(self.said))
        if not data:
            raise Malformed("There is nothing in it.")
        return data


def find_images(named: Iterable[str]) -> list[ImageSource]:
    """All pictures that a command line names, in its order, folders and patterns spelled out.

    Raises:
        NotFound: A folder or pattern holds no picture.
    """
    taken: set[str] = set()
    found = []
    for said in (place for name in named for place in _places(name)):
        stem = _free(_stem(said), taken)
        taken.add(stem)
        found.append(ImageSource(said, stem))
    return found


def _places(name: str) -> Iterator[str]:
    if name == "-" or _is_url(name):
        yield name
    elif Path(name).is_dir():
        pictures = sorted(file for file in Path(name).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not pictures:
            raise NotFound(
                f"The folder {name} holds no picture.", hint=f"Looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        yield from map(str, pictures)
    elif not Path(name).exists() and glob.has_magic(name):
        matches = sorted(file for file in glob.glob(name, recursive=True) if Path(file).is_file())  # noqa: PTH207 - pathlib has no pattern that starts at an absolute path
        if not matches:
            raise NotFound(f"Nothing matches {name}.")
        yield from matches
    else:
        yield name


def _stem(said: str) -> str:
    if said == "-":
        return "stdin"
    name = PurePosixPath(urlsplit(said).path).stem if _is_url(said) else Path(said).stem
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name) or "picture"


def _free(stem: str, taken: set[str]) -> str:
    if stem not in taken:
        return stem
    return next(name for number in range(2, len(taken) + 3) if (name := f"{stem}-{number}") not in taken)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("There is no such file.") from error
    except OSError as error:
        raise NotFound(f"It can't be read: {error.strerror}.") from error


async def _fetch(url: str) -> bytes:
    """Fetch a picture; the gateway is sent its bytes and never sees the address."""
    data = bytearray()
    try:
        async with (
            httpx2.AsyncClient(timeout=FETCH_TIMEOUT_S, follow_redirects=True) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > MAX_FETCH_BYTES:
                    raise TooLarge(f"It has more than {MAX_FETCH_BYTES:,} bytes.")
    except httpx2.HTTPStatusError as error:
        raise NotFound(f"The server answered {error.response.status_code}.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _unfetched(error) from error
    return bytes(data)


def _unfetched(error: Exception) -> FoveaError:
    return NotFound(f"It could not be fetched: {str(error) or type(error).__name__}.")
