"""Tenant folders: small records of each tenant as JSON files, written whole or not at all. Knows no HTTP."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from shared.errors import NotFound

__all__ = ["TenantFolder"]

_ID = re.compile(r"[a-z]+-[0-9a-f]{32}")


class TenantFolder:
    """Records of one kind below a folder, by tenant and id. Ids are made here, so that no caller names a path."""

    def __init__(self, root: Path, kind: str) -> None:
        """Keep records of a kind (`file`, `batch`) below `root`; nothing is created yet."""
        self._root, self._kind = root, kind

    def path(self, tenant: str, record_id: str, suffix: str) -> Path:
        """Where something of a record is.

        Raises:
            NotFound: The id is none of ours.
        """
        if not _ID.fullmatch(record_id):
            raise NotFound(f"There is no {self._kind} {record_id[:80]!r}.", field="id")
        return self._root / tenant / f"{record_id}{suffix}"

    def read(self, tenant: str, record_id: str, suffix: str) -> bytes:
        """What was written.

        Raises:
            NotFound: The tenant has no such record.
        """
        try:
            return self.path(tenant, record_id, suffix).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"There is no {self._kind} {record_id!r}.", field="id") from error

    def write(self, tenant: str, record_id: str, suffix: str, data: bytes) -> None:
        """Write whole, or not at all; only this user may read it."""
        path = self.path(tenant, record_id, suffix)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def delete(self, tenant: str, record_id: str, *suffixes: str) -> None:
        """Remove all of a record."""
        for suffix in suffixes:
            self.path(tenant, record_id, suffix).unlink(missing_ok=True)

    def list_ids(self, tenant: str) -> list[str]:
        """Ids of a tenant's records, the last written first."""
        folder = self._root / tenant
        found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [path.stem for path in found]
