"""Text files of the command line: reads and writes them, gzipped where the name ends in `.gz`."""

import gzip
import sys
import zlib
from pathlib import Path

from fovea.errors import Malformed, NotFound

MAX_TEXT_BYTES = 256 * 2**20
"""Largest text file, unpacked."""


def read_text(path: Path | None) -> str:
    """Read a text file, unpacked where its name ends in `.gz`; `-` is standard input, None is the empty text.

    Raises NotFound: there is no such file; Malformed: it is not text, not gzip, or larger than `MAX_TEXT_BYTES`.
    """
    if path is None:
        return ""
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"{path} can't be read as text: {error}.") from error


def read_file(path: Path) -> bytes:
    """Read the bytes of such a file. Raises as `read_text`."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise Malformed(f"{path} can't be read: {error}.") from error
    if len(raw) > MAX_TEXT_BYTES:
        raise Malformed(f"{path} has more than {MAX_TEXT_BYTES // 2**20} MB.", hint="Send it in parts.")
    return raw


def write_text(path: Path | None, text: bytes) -> None:
    """Write to a file, gzipped where its name ends in `.gz`; None is standard output."""
    write_file(path, gzip.compress(text, mtime=0) if path is not None and path.suffix == ".gz" else text)


def write_file(path: Path | None, content: bytes) -> None:
    """Write to a file, whose folder is made where there is none; None is standard output."""
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
