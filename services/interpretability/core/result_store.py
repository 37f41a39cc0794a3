"""Where reports, artefacts and cells of this machine lie: under one folder, everything by digest, safe to delete.

Knows files and digests; knows no experiment.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

from services.interpretability.core.cell_cache import Ledger
from services.interpretability.core.report import Artefact, Report, digest
from shared.errors import NotFound

__all__ = ["Store"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Store:
    """Reports by the key of their spec, artefacts by their content."""

    def __init__(self, folder: Path) -> None:
        """Keep things under `folder`, which is made when the first one comes."""
        self._folder = folder

    @cached_property
    def ledger(self) -> Ledger:
        """The cells."""
        return Ledger(self._folder / "cells")

    def bench(self, content: object) -> Path:
        """A folder for what is half done, by what it depends on: its owner removes it when it is done."""
        return self._folder / "bench" / digest(content)

    def keep(self, key: str, report: Report) -> None:
        """Keep a report and its artefacts."""
        _write(self._folder / "reports" / f"{key}.json", report.model_dump_json())
        for artefact in report.artefacts:
            self.keep_artefact(artefact)

    def keep_artefact(self, artefact: Artefact) -> Path:
        """Keep an artefact that holds its content; return its file."""
        file = self._folder / "artefacts" / artefact.sha256
        _write(file, artefact.content or "")
        return file

    def knows(self, key: str) -> bool:
        """Whether there is a whole report of that key."""
        try:
            return not self.report(key).partial
        except NotFound:
            return False

    def report(self, key: str) -> Report:
        """A kept report, whole or partial.

        Raises:
            NotFound: There is none of that key.
        """
        return Report.model_validate_json(self._read("reports", key, ".json"))

    def artefact(self, sha256: str) -> str:
        """An artefact's content.

        Raises:
            NotFound: There is none of that digest.
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
