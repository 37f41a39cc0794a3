"""Named documents in numbered versions, as files: a version is written once and never changed.

What a judgement was made with must still be there, unchanged, when somebody asks a year later. Knows files and names;
knows nothing about what the documents say.
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
        folder: Where they are; made when the first is put there.
        what: What errors call them.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder, self._what = folder, what

    def add(self, name: str, document: Mapping[str, Any]) -> int:
        """Keep a document as the next version of its name; that version.

        Raises:
            InvalidOption: The name is not lower-case letters, digits, dots, dashes and underscores.
        """
        folder = self._folder / _checked(name)
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
        known = self._versions(plain) if _NAME.fullmatch(plain) else []
        if not known:
            have = ", ".join(self.names()) or "none yet"
            raise NotFound(f"There is no {self._what} {plain[:80]!r}; known are {have}.", field=self._what)
        if version and (not version.isdecimal() or int(version) not in known):
            have = ", ".join(map(str, known))
            raise NotFound(f"The {self._what} {plain} has the versions {have}, not {version[:20]}.", field=self._what)
        chosen = int(version) if version else known[-1]
        return plain, chosen, json.loads((self._folder / plain / f"{chosen}.json").read_text("utf8"))

    def names(self) -> list[str]:
        """All names, in order."""
        return sorted(folder.name for folder in self._folder.glob("*") if self._versions(folder.name))

    def versions(self, name: str) -> list[int]:
        """The versions of a name, oldest first; none where it is not known."""
        return self._versions(name) if _NAME.fullmatch(name) else []

    def _versions(self, name: str) -> list[int]:
        return sorted(int(file.stem) for file in (self._folder / name).glob("*.json") if file.stem.isdecimal())


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        hint = "Use lower-case letters, digits, dots, dashes and underscores, at most 64."
        raise InvalidOption(f"{name[:80]!r} can't be a name.", hint=hint, field="name")
    return name
