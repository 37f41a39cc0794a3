"""Cells that were computed, kept by content: a job that was killed goes on where it stopped, and repeats nothing.

A cell's key is the digest of all that its value depends on, so nothing here can be stale. Knows files and JSON; knows
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

from services.interpretability.core.report import digest

__all__ = ["Entry", "Ledger"]

KEPT_S = 14 * 24 * 3600
"""Cells that nobody asked for in two weeks are forgotten."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell's value, how long it took, and when it was computed (UTC, ISO 8601)."""

    value: Any
    seconds: float
    at: str


class Ledger:
    """Cells of all experiments on one machine, one small file each."""

    def __init__(self, folder: Path) -> None:
        """Keep cells in `folder`, which is made when the first cell is written."""
        self._folder = folder

    def entry(self, content: Mapping[str, Any], work: Callable[[], Any]) -> Entry:
        """The cell of this content: read if it was ever computed, else computed and kept.

        Args:
            content: What the value depends on, as JSON.
            work: Computes the value, as JSON; called only where there is none yet.
        """
        key = digest(content)
        file = self._folder / key[:2] / f"{key}.json"
        if (known := _read(file)) is not None:
            return known
        begun = time.perf_counter()
        # Through JSON once, so that a resumed run and a fresh one go on with the very same numbers.
        value = json.loads(_json(work()))
        found = Entry(
            value, round(time.perf_counter() - begun, 4), dt.datetime.now(tz=dt.UTC).isoformat("T", "seconds")
        )
        _write(file, _json({"value": found.value, "seconds": found.seconds, "at": found.at}))
        return found

    def forget(self, older_than_s: float = KEPT_S) -> int:
        """Remove cells that were not read for so long; return how many."""
        limit = time.time() - older_than_s
        old = [file for file in self._folder.glob("??/*.json") if file.stat().st_mtime < limit]
        for file in old:
            file.unlink(missing_ok=True)
        return len(old)


def _json(content: Any) -> str:
    """As `work` gave it: the order of keys may be that of layers, and a report shows them in it."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _read(file: Path) -> Entry | None:
    try:
        found = Entry(**json.loads(file.read_text("utf-8")))
        os.utime(file)
    except (OSError, ValueError, TypeError):  # absent, or cut short when the machine went down: compute it again
        return None
    return found


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.replace(file)
