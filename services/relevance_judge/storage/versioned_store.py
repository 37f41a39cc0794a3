"""Versioned store: named JSON documents in numbered versions, as files. A version is written once and never changed.

What a judgement was made with must still be there, unchanged, when somebody asks a year later.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import InvalidOption, NotFound

__all__ = ["VersionedStore"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class VersionedStore:
    """The documents of one kind, in one folder.

    Args:
        folder: Where they are; created with the first one.
        kind: Their name in errors.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind

    def add(self, name: str, document: Mapping[str, Any]) -> int:
        """Store a document as the next version of its name, and return that version.

        Raises:
            InvalidOption: The name is not lower-case letters, digits, dots, dashes and underscores.
        """
        folder = self._folder / _validate_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        version = max(self._versions(name), default=0) + 1
        draft = folder / f".{version}.{os.getpid()}.{os.urandom(4).hex()}"
        with draft.open("w", encoding="utf8") as file:
            json.dump(document, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        try:
            while True:
                try:
                    # A link appears whole or not at all, and never over another writer's version.
                    os.link(draft, folder / f"{version}.json")
                except FileExistsError:
                    version += 1
                else:
                    return version
        finally:
            draft.unlink()

    def get(self, name: str) -> tuple[str, int, dict[str, Any]]:
        """A document by `name`, the latest, or by `name@version`: its name, version and content.

        Raises:
            NotFound: There is no such name or version; the detail lists those there are.
        """
        plain, _, version = name.partition("@")
        versions = self._versions(plain) if _NAME.fullmatch(plain) else []
        if not versions:
            have = ", ".join(self.list_names()) or "none yet"
            raise NotFound(f"There is no {self._kind} {plain[:80]!r}; known are {have}.", field=self._kind)
        if version and (not version.isdecimal() or int(version) not in versions):
            have = ", ".join(map(str, versions))
            raise NotFound(f"The {self._kind} {plain} has the versions {have}, not {version[:20]}.", field=self._kind)
        number = int(version) if version else versions[-1]
        return plain, number, json.loads((self._folder / plain / f"{number}.json").read_text("utf8"))

    def list_names(self) -> list[str]:
        """All names, in order."""
        return sorted(folder.name for folder in self._folder.glob("*") if self._versions(folder.name))

    def list_versions(self, name: str) -> list[int]:
        """The versions of a name, oldest first; none for an unknown name."""
        return self._versions(name) if _NAME.fullmatch(name) else []

    def _versions(self, name: str) -> list[int]:
        return sorted(int(file.stem) for file in (self._folder / name).glob("*.json") if file.stem.isdecimal())


def _validate_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        hint = "Use lower-case letters, digits, dots, dashes and underscores, at most 64."
        raise InvalidOption(f"{name[:80]!r} is not a valid name.", hint=hint, field="name")
    return name
