"""Input pictures of the command line: a file, a folder, a pattern, a URL, or `-` for standard input."""

import asyncio
import glob
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx2

from fovea.errors import Malformed, NotFound, TooLarge
from fovea.picture import read_path

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes of the files in a folder that are pictures."""

MAX_FETCH_BYTES = 64 * 2**20
"""Largest picture that is fetched; the gateway's own default for a body."""

FETCH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One picture that is not read yet; `stem` names its output files as its own, and is unique within one command."""

    name: str
    stem: str

    async def read(self) -> bytes:
        """Read its bytes.

        Raises NotFound: it can't be read; TooLarge: a URL holds more than `MAX_FETCH_BYTES`; Malformed: it is empty.
        """
        if self.name == "-":
            data = bytes(await asyncio.to_thread(sys.stdin.buffer.read))
        elif _is_url(self.name):
            data = await _fetch(self.name)
        else:
            data = await asyncio.to_thread(read_path, Path(self.name))
        if not data:
            raise Malformed("The picture is empty.")
        return data


def find_images(names: Iterable[str], reserved: Iterable[str] = ()) -> list[ImageSource]:
    """Find all pictures that arguments name, in their order; folders and patterns are expanded.

    No stem is a reserved one. Raises NotFound: a folder or pattern holds no picture.
    """
    taken, found = set(reserved), []
    for path in (path for name in names for path in _expand(name)):
        stem = make_unique(_stem_of(path), taken)
        taken.add(stem)
        found.append(ImageSource(path, stem))
    return found


def split_by_size(
    files: Iterable[tuple[str, Path]], limit: int, size_of: Callable[[Path], int] = lambda file: file.stat().st_size
) -> Iterator[list[tuple[str, Path]]]:
    """Split files with their names into parts of `limit` bytes at most; a larger file goes alone."""
    part: list[tuple[str, Path]] = []
    total = 0
    for name, file in files:
        size = size_of(file)
        if part and total + size > limit:
            yield part
            part, total = [], 0
        part.append((name, file))
        total += size
    if part:
        yield part


def _expand(name: str) -> Iterator[str]:
    if name == "-" or _is_url(name):
        yield name
    elif name and Path(name).is_dir():
        named = (f for f in Path(name).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != ".")
        if not (pictures := sorted(f for f in named if not _is_result(f))):
            raise NotFound(f"The folder {name} has no picture.", hint=f"Pictures end in {', '.join(IMAGE_SUFFIXES)}.")
        yield from map(str, pictures)
    elif not Path(name).exists() and glob.has_magic(name):
        files = glob.glob(name, recursive=True)  # noqa: PTH207 - pathlib has no pattern that starts at an absolute path
        matches = sorted(file for file in files if Path(file).is_file() and not _is_result(Path(file)))
        if not matches:
            raise NotFound(f"No file matches {name}.")
        yield from matches
    else:
        yield name


def _is_result(file: Path) -> bool:
    """Whether a command wrote this picture, next to NAME.json: its second run does not read it."""
    name, _, layer = file.stem.rpartition(".")
    layers = {"mask", "overlay", "boxes", "classes", "restored", "reflection", "comparison"}
    return layer in layers and file.with_name(f"{name}.json").exists()


def _stem_of(name: str) -> str:
    if name == "-":
        return "stdin"
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(urlsplit(name).path).stem) if _is_url(name) else Path(name).stem
    return re.sub("[\udc80-\udcff]", "_", stem).encode()[:200].decode(errors="ignore") or "picture"  # of 255 at most


def make_unique(stem: str, taken: set[str]) -> str:
    """Return the name, or with the first number from 2 on that makes it another than those that are taken."""
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


async def _fetch(url: str) -> bytes:
    """Download a picture; the gateway gets its bytes and never sees the address."""
    data = bytearray()
    try:
        async with (
            httpx2.AsyncClient(timeout=FETCH_TIMEOUT_S, follow_redirects=True) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > MAX_FETCH_BYTES:
                    raise TooLarge(f"The picture has more than {MAX_FETCH_BYTES:,} bytes.")
    except httpx2.HTTPStatusError as error:
        raise NotFound(f"The server answered {error.response.status_code}.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NotFound(f"The picture can't be downloaded: {str(error) or type(error).__name__}.") from error
    return bytes(data)
