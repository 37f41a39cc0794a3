"""Calls of the judge's routes, and the files that go into them. Sends nothing; knows no verb."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea.call import Call, read_bytes, read_json
from shared.errors import Malformed, NotFound

__all__ = ["MAX_TEXT_BYTES", "compute", "fetch", "labels", "read_text", "write_text"]

MAX_TEXT_BYTES = 256 * 2**20
"""Of a file, unpacked: beyond it something is wrong with the file, or with the plan."""


def compute(what: str, body: Mapping[str, Any]) -> Call[Any]:
    """Ask for something that is computed from the body; options that are None are left out."""
    given = {name: value for name, value in body.items() if value is not None}
    return Call("POST", f"/v1/judge/{what}", read_json, json=given)


def fetch(what: str, **params: str | int | None) -> Call[Any]:
    """Fetch something that is there."""
    return Call("GET", f"/v1/judge/{what}", read_json, params=params)


def labels(batch: str, form: str) -> Call[bytes]:
    """Fetch a batch's labels in one form."""
    return Call("GET", f"/v1/judge/batches/{batch}", read_bytes, params={"form": form})


def read_text(path: Path | None) -> str:
    """A file's text, unpacked where its name ends in `.gz`; `-` stands for standard input, None for nothing.

    Raises:
        NotFound: There is no such file.
        Malformed: It is not text, not gzip, or larger than `MAX_TEXT_BYTES`.
    """
    if path is None:
        return ""
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return _read(path).decode("utf8")
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Malformed(f"{path} can't be read as text: {error}.") from error


def write_text(path: Path | None, text: bytes) -> None:
    """Write to a file, gzipped where its name says so, or to standard output."""
    if path is None:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _read(path: Path) -> bytes:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise Malformed(f"{path} holds more than {MAX_TEXT_BYTES // 2**20} MB.", hint="Send it in parts.")
    return raw
