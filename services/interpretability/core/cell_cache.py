"""Content-addressed cache of computed cells: a job that was killed resumes where it stopped and repeats no cell.

A cell's key is the digest of everything its value depends on, so an entry is never stale. Knows objects and JSON; knows
no experiment.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.interpretability.core.report import json_digest
from shared.storage import ObjectStore

CELL_TTL_S = 14 * 24 * 3600
"""Cells that were computed so long ago are removed."""


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
    """Cells of all experiments of one tenant, one small object each."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def get_or_compute(self, content: Mapping[str, Any], work: Callable[[], Any]) -> CachedCell:
        """Return the cell of this content, the facts as JSON that it depends on; `work` computes its JSON on a miss."""
        key = json_digest(content)
        path = f"{key[:2]}/{key}.json"
        if (cached := _parse(self._objects.get(path))) is not None:
            return cached
        started = time.perf_counter()
        # Through JSON once, so that a resumed run and a fresh one continue with the very same numbers.
        value = json.loads(_to_json(work()))
        seconds = round(time.perf_counter() - started, 4)
        cell = CachedCell(value, seconds, dt.datetime.now(tz=dt.UTC).isoformat("T", "seconds"))
        text = _to_json({"value": cell.value, "seconds": cell.seconds, "at": cell.at})
        self._objects.put(path, text.encode("utf8", "surrogatepass"))
        return cell

    def remove_old(self, older_than_s: float = CELL_TTL_S) -> int:
        """Remove cells that were computed so long ago; return how many."""
        limit = time.time() - older_than_s
        old = [facts.path for facts in self._objects.list_objects() if facts.modified.timestamp() < limit]
        self._objects.delete(*old)
        return len(old)


def _to_json(content: Any) -> str:
    """Keys stay in the order in which `work` gave them: it may be that of layers, and reports show it."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _parse(content: bytes | None) -> CachedCell | None:
    try:
        return None if content is None else CachedCell(**json.loads(content.decode("utf8", "surrogatepass")))
    except (ValueError, TypeError):  # damaged: compute it again
        return None
