"""Store of reports, artefacts and cached cells on this machine: one folder, addressed by digest, safe to delete.

Knows files and digests; knows no experiment.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

from services.interpretability.core.cell_cache import CellCache
from services.interpretability.core.report import Artefact, Report, json_digest
from shared.errors import NotFound

__all__ = ["ResultStore"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ResultStore:
    """Reports by the key of their spec, artefacts by the digest of their content."""

    def __init__(self, folder: Path) -> None:
        """Store everything under `folder`, which is created with the first entry."""
        self._folder = folder

    @cached_property
    def cells(self) -> CellCache:
        """The cell cache."""
        return CellCache(self._folder / "cells")

    def work_folder(self, content: object) -> Path:
        """Folder for unfinished work (checkpoints) that depends on `content`; its owner removes it when done."""
        return self._folder / "bench" / json_digest(content)

    def save_report(self, key: str, report: Report) -> None:
        """Store a report and its artefacts."""
        _write(self._folder / "reports" / f"{key}.json", report.model_dump_json())
        for artefact in report.artefacts:
            self.save_artefact(artefact)

    def save_artefact(self, artefact: Artefact) -> Path:
        """Store an artefact that holds its content; return its file."""
        file = self._folder / "artefacts" / artefact.sha256
        _write(file, artefact.content or "")
        return file

    def has_report(self, key: str) -> bool:
        """Whether there is a complete report under this key."""
        try:
            return not self.read_report(key).partial
        except NotFound:
            return False

    def read_report(self, key: str) -> Report:
        """Return a stored report, complete or partial.

        Raises:
            NotFound: There is none under this key.
        """
        return Report.model_validate_json(self._read("reports", key, ".json"))

    def read_artefact(self, sha256: str) -> str:
        """Return the content of an artefact.

        Raises:
            NotFound: There is none with this digest.
        """
        return self._read("artefacts", sha256, "")

    def _read(self, room: str, key: str, suffix: str) -> str:
        file = self._folder / room / f"{key}{suffix}"
        if not _DIGEST.fullmatch(key) or not file.is_file():
            detail = f"There is nothing under {key[:64]!r} in {room}."
            raise NotFound(detail, hint="Reports are kept on the machine that made them, for as long as its cache is.")
        return file.read_text("utf-8")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.replace(file)
