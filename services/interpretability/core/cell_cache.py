"""Content-addressed cache of computed cells: a job that was killed resumes where it stopped and repeats no cell.

A cell's key is the digest of everything its value depends on, so an entry is never stale. Knows files and JSON; knows
no experiment.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.interpretability.core.report import json_digest

__all__ = ["CachedCell", "CellCache"]

UNUSED_CELL_TTL_S = 14 * 24 * 3600
"""Cells that were not read for so long are removed."""


@dataclass(frozen=True, slots=True)
class CachedCell:
    """One cached value.

    Attributes:
        value: The value, as JSON.
        seconds: How long it took to compute.
        at: When it was computed (UTC, ISO 8601).
    """

    value: Any
    seconds: float
    at: str


class CellCache:
    """Cells of all experiments on one machine, one small file each."""

    def __init__(self, folder: Path) -> None:
        """Store cells in `folder`, which is created with the first cell."""
        self._folder = folder

    def get_or_compute(self, content: Mapping[str, Any], work: Callable[[], Any]) -> CachedCell:
        """Return the cell of this content: read from the cache, else computed and stored.

        Args:
            content: What the value depends on, as JSON.
            work: Computes the value, as JSON; called only on a miss.
        """
        key = json_digest(content)
        file = self._folder / key[:2] / f"{key}.json"
        if (cached := _read(file)) is not None:
            return cached
        started = time.perf_counter()
        # Through JSON once, so that a resumed run and a fresh one continue with the very same numbers.
        value = json.loads(_to_json(work()))
        seconds = round(time.perf_counter() - started, 4)
        cell = CachedCell(value, seconds, dt.datetime.now(tz=dt.UTC).isoformat("T", "seconds"))
        _write(file, _to_json({"value": cell.value, "seconds": cell.seconds, "at": cell.at}))
        return cell

    def remove_unused(self, older_than_s: float = UNUSED_CELL_TTL_S) -> int:
        """Remove cells that were not read for so long; return how many."""
        limit = time.time() - older_than_s
        old = [file for file in self._folder.glob("??/*.json") if file.stat().st_mtime < limit]
        for file in old:
            file.unlink(missing_ok=True)
        return len(old)


def _to_json(content: Any) -> str:
    """Keys stay in the order in which `work` gave them: it may be that of layers, and reports show it."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _read(file: Path) -> CachedCell | None:
    try:
        cell = CachedCell(**json.loads(file.read_text("utf-8")))
        os.utime(file)
    except (OSError, ValueError, TypeError):  # absent, or cut short when the machine went down: compute it again
        return None
    return cell


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.replace(file)
