"""Lists as forms and query strings write them: `mask,rle`."""

from __future__ import annotations

from typing import Any


def split_commas(value: Any) -> Any:
    """Words of one text or of several, split at commas; anything else is left to the field's own check."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return [word.strip() for part in parts for word in part.split(",") if word.strip()]
