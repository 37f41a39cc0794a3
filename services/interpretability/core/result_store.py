"""Store of reports, artefacts and computed cells, of each tenant apart, addressed by digest.

A cell's key is the digest of everything its value depends on, so an entry is never stale: a job that was killed resumes
where it stopped and repeats no cell. Knows objects, JSON and digests; knows no experiment.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from fovea.errors import NotFound
from services.interpretability.core.report import Artefact, Report, json_digest
from shared.registry import LoadContext
from shared.storage import ObjectStore

_DIGEST = re.compile(r"[0-9a-f]{64}")

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


class ResultStore:
    """Results of all tenants, in their object store, with a folder for unfinished work on this machine."""

    def __init__(self, objects: ObjectStore, folder: Path) -> None:
        self._objects, self._folder = objects, folder

    @classmethod
    def of_context(cls, context: LoadContext) -> Self:
        """The store of a LoadContext; without an object store, results are kept next to the caches."""
        folder = context.cache / "probe"
        return cls(context.objects or ObjectStore.open(folder.absolute().as_uri()), folder)

    def of_tenant(self, tenant: str) -> TenantResults:
        """The results of one tenant."""
        return TenantResults(self._objects.of_tenant(tenant).under("probe"))

    def work_folder(self, content: object) -> Path:
        """Folder for unfinished work (checkpoints) that depends on `content`; its owner removes it when done."""
        return self._folder / "bench" / json_digest(content)


class TenantResults:
    """Reports by the key of their spec, artefacts by the digest of their content."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    @cached_property
    def cells(self) -> CellCache:
        """The cell cache."""
        return CellCache(self._objects.under("cells"))

    def save_report(self, key: str, report: Report) -> None:
        """Store a report."""
        self._objects.put(f"reports/{key}", report.model_dump_json().encode())

    def save_artefact(self, artefact: Artefact) -> None:
        """Store an artefact that holds its content."""
        self._objects.put(f"artefacts/{artefact.sha256}", artefact.data())

    def has_report(self, key: str) -> bool:
        """Whether there is a complete report under this key."""
        try:
            return not self.read_report(key).partial
        except NotFound:
            return False

    def read_report(self, key: str) -> Report:
        """Return a stored report, complete or partial; `NotFound` if there is none under this key."""
        return Report.model_validate_json(self._read("reports", key))

    def read_artefact(self, sha256: str) -> bytes:
        """Return the content of an artefact; `NotFound` if there is none with this digest."""
        return self._read("artefacts", sha256)

    def _read(self, room: str, key: str) -> bytes:
        content = self._objects.get(f"{room}/{key}") if _DIGEST.fullmatch(key) else None
        if content is None:
            detail = f"There is nothing under {key[:64]!r} in {room}."
            raise NotFound(detail, hint="A report is readable by its own tenant, as long as the object store keeps it.")
        return content
