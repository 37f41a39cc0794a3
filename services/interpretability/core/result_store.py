"""Store of reports, artefacts and cached cells, of each tenant apart, addressed by digest.

Knows objects and digests; knows no experiment.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Self

from fovea.errors import NotFound
from services.interpretability.core.cell_cache import CellCache
from services.interpretability.core.report import Artefact, Report, json_digest
from shared.registry import LoadContext
from shared.storage import ObjectStore

_DIGEST = re.compile(r"[0-9a-f]{64}")


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

    def read_artefact(self, sha256: str) -> str:
        """Return the content of an artefact that is text; `NotFound` if there is none with this digest."""
        return self.read_artefact_bytes(sha256).decode()

    def read_artefact_bytes(self, sha256: str) -> bytes:
        """Return the content of an artefact; `NotFound` if there is none with this digest."""
        return self._read("artefacts", sha256)

    def _read(self, room: str, key: str) -> bytes:
        content = self._objects.get(f"{room}/{key}") if _DIGEST.fullmatch(key) else None
        if content is None:
            detail = f"There is nothing under {key[:64]!r} in {room}."
            raise NotFound(detail, hint="A report is readable by its own tenant, as long as the object store keeps it.")
        return content
