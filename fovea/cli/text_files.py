"""Text files of the command line: reads and writes them, gzipped where the name ends in `.gz`."""

import gzip
import sys
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
        return (sys.stdin.buffer.read() if str(path) == "-" else _read(path)).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Malformed(f"{path} can't be read as text: {error}.") from error


def read_old_text(path: Path) -> tuple[str, str]:
    """Read a text file of any age: UTF-8 with or without its mark, else Windows' or plain Latin-1; and the encoding.

    Raises NotFound, Malformed: as `read_text`.
    """
    try:
        return read_text(path), "UTF-8"
    except Malformed as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
    raw = _read(path)
    try:
        return raw.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        return raw.decode("latin1"), "Latin-1"


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


def _read(path: Path) -> bytes:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise Malformed(f"{path} has more than {MAX_TEXT_BYTES // 2**20} MB.", hint="Send it in parts.")
    return raw
