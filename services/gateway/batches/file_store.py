"""File store: uploaded request lists and the answers of batches, by tenant, in the data folder. Knows no HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

from services.gateway.batches.tenant_folder import TenantFolder
from shared.api.batches import FileObject
from shared.errors import QueueFull

__all__ = ["FileStore"]

MAX_FILES = 1000
"""Files of one tenant."""


class FileStore:
    """Keeps files until they are deleted."""

    def __init__(self, root: Path) -> None:
        """Keep them below `root`."""
        self._folder = TenantFolder(root, "file")

    def add(self, tenant: str, name: str, purpose: str, data: bytes) -> FileObject:
        """Store a file.

        Raises:
            QueueFull: The tenant has too many.
        """
        if len(self._folder.list_ids(tenant)) >= MAX_FILES:
            raise QueueFull(f"There are {MAX_FILES} files already.", hint="Delete some.")
        file = FileObject(
            id=f"file-{uuid4().hex}", bytes=len(data), created_at=int(time.time()), filename=name, purpose=purpose
        )
        self._folder.write(tenant, file.id, ".data", data)
        self._folder.write(tenant, file.id, ".json", file.model_dump_json().encode())
        return file

    def get(self, tenant: str, file_id: str) -> FileObject:
        """Describe a file; raises NotFound."""
        return FileObject.model_validate_json(self._folder.read(tenant, file_id, ".json"))

    def read(self, tenant: str, file_id: str) -> bytes:
        """Read a file; raises NotFound."""
        return self._folder.read(tenant, file_id, ".data")

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file; raises NotFound."""
        self.get(tenant, file_id)
        self._folder.delete(tenant, file_id, ".json", ".data")

    def list_files(self, tenant: str, purpose: str | None = None) -> list[FileObject]:
        """All files of a tenant, newest first."""
        found = [self.get(tenant, file_id) for file_id in self._folder.list_ids(tenant)]
        return [file for file in found if purpose in {None, file.purpose}]
