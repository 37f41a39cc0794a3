"""JSON lines: an object a line, with its number in errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fovea.errors import Malformed


def parse_json_lines(text: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not empty; see `parse_object`."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, parse_object(line, number, source)


def parse_object(line: str, number: int, source: str) -> dict[str, Any]:
    """Parse one line; `Malformed` if it is not a JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"Line {number} of {source} is not JSON.") from error
    if not isinstance(row, dict):
        raise Malformed(f"Line {number} of {source} is not a JSON object.")
    return row
