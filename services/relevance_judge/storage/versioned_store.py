"""Versioned store: named JSON documents in numbered versions. A version is written once and never changed.

The parts of a judgement must still be there, unchanged, a year later.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from fovea.errors import InvalidOption, NotFound
from shared.storage import ObjectStore

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class VersionedStore:
    """Documents of one `kind` (for errors); `objects` holds them as `<name>/<version>.json`, and nothing else."""

    def __init__(self, objects: ObjectStore, kind: str) -> None:
        self._objects, self._kind = objects, kind

    def add(self, name: str, document: Mapping[str, Any]) -> int:
        """Store a document as the next version of its name, and return that version; `InvalidOption` for a bad name."""
        if not _NAME.fullmatch(name):
            hint = "Use lower-case letters, digits, dots, dashes and underscores, at most 64."
            raise InvalidOption(f"{name[:80]!r} is not a valid name.", hint=hint, field="name")
        version = max(self.list_versions(name), default=0) + 1
        content = json.dumps(document, ensure_ascii=False).encode()
        # Created, never replaced: of two writers at the same time one takes the version after.
        while not self._objects.create(f"{name}/{version}.json", content):
            version += 1
        return version

    def get(self, name: str) -> tuple[str, int, dict[str, Any]]:
        """A document by `name`, the latest, or by `name@version`: its name, version and content; else `NotFound`."""
        plain, _, version = name.partition("@")
        versions = self.list_versions(plain)
        if not versions:
            have = ", ".join(self.list_names()) or "none yet"
            raise NotFound(f"There is no {self._kind} {plain[:80]!r}; known are {have}.", field=self._kind)
        if version and version not in map(str, versions):
            have = ", ".join(map(str, versions))
            raise NotFound(f"The {self._kind} {plain} has the versions {have}, not {version[:20]}.", field=self._kind)
        number = int(version) if version else versions[-1]
        return plain, number, json.loads(self._objects.get(f"{plain}/{number}.json") or b"{}")

    def list_names(self) -> list[str]:
        """All names, in order."""
        return self._objects.list_names()

    def list_versions(self, name: str) -> list[int]:
        """The versions of a name, oldest first; none for an unknown name."""
        files = self._objects.under(name).list_names() if _NAME.fullmatch(name) else []
        return sorted(int(file.removesuffix(".json")) for file in files)
