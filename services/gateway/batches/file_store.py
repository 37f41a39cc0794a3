"""File store: uploaded request lists and the answers of batches, each tenant's in the object store. Knows no HTTP.

tenants/<digest>/openai/files/<id>.data     the bytes
tenants/<digest>/openai/files/<id>.json     the facts; there is a file as long as there are these
"""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from fovea.api.batches import FileObject
from fovea.errors import NotFound, QueueFull, RateLimited
from shared.storage import ObjectStore
from shared.validation_errors import parse_fields

MAX_FILES = 1000
"""Files of one tenant."""

_ID = re.compile(r"file-[0-9a-f]{32}")

_READERS = 16
"""Facts that are read at a time: a list asks the store once for each file."""


def find_page(ids: Sequence[str], after: str | None) -> int:
    """Where the page after an id begins. Raises NotFound: `after` is none of the ids."""
    if after is None or after in ids:
        return 0 if after is None else ids.index(after) + 1
    raise NotFound(f"The list has no {after[:80]!r}.", hint="Give the last id of the page before.", field="after")


class FileStore:
    """Keeps files until they are deleted. Gateways with the same object store share them. Calls block."""

    def __init__(self, objects: ObjectStore, quota_bytes: int) -> None:
        """Keep them below each tenant's path of `objects`; a tenant's hold at most `quota_bytes`."""
        self._objects, self._quota_bytes = objects, quota_bytes
        # Locks of tenants' uploads, which would all find the same room together. A wait for one holds no thread.
        self.adding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def add(self, tenant: str, name: str, purpose: str, data: bytes) -> FileObject:
        """Store a file. Raises QueueFull: the tenant has too many; RateLimited: they hold as many bytes as they may."""
        self.check_room(tenant, len(data))
        return self.put(tenant, f"file-{uuid4().hex}", name, purpose, data)

    def put(self, tenant: str, file_id: str, name: str, purpose: str, data: bytes) -> FileObject:
        """Store a file, also beyond the quota: answers are kept. Raises InvalidOption: its name is not Unicode."""
        facts = {
            "id": file_id, "bytes": len(data), "created_at": int(time.time()), "filename": name, "purpose": purpose,
        }  # fmt: skip
        file = parse_fields(FileObject, facts)
        objects = self._of(tenant)
        objects.put(f"{file_id}.data", data)
        try:
            objects.put(f"{file_id}.json", file.model_dump_json().encode())
        except BaseException:
            objects.delete(f"{file_id}.data")
            raise
        return file

    def check_room(self, tenant: str, more: int = 0) -> None:
        """Check that a tenant may store another file of `more` bytes.

        Raises QueueFull: there are too many; RateLimited: they hold as many bytes as they may.
        """
        found = list(self._of(tenant).list_objects())
        if sum(facts.path.endswith(".json") for facts in found) >= MAX_FILES:
            raise QueueFull(f"There are {MAX_FILES} files already.", hint="Delete some.")
        if (held := sum(facts.size for facts in found)) + more > self._quota_bytes:
            detail = f"Your files hold {held:,} bytes of at most {self._quota_bytes:,}."
            raise RateLimited(detail, hint="Delete some (DELETE /v1/files/{id}): also answers of batches count.")

    def get(self, tenant: str, file_id: str) -> FileObject:
        """Describe a file; raises NotFound."""
        return FileObject.model_validate_json(self._read(tenant, file_id, "json"))

    def read(self, tenant: str, file_id: str) -> bytes:
        """Read a file; raises NotFound."""
        return self._read(tenant, file_id, "data")

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file; raises NotFound."""
        self.get(tenant, file_id)
        self._of(tenant).delete(f"{file_id}.json", f"{file_id}.data")

    def list_files(self, tenant: str, purpose: str | None = None) -> list[FileObject]:
        """All files of a tenant, newest first."""
        objects = self._of(tenant)
        newest = sorted(objects.list_objects(), key=lambda facts: facts.modified, reverse=True)
        with ThreadPoolExecutor(_READERS) as readers:
            read = readers.map(objects.get, [facts.path for facts in newest if facts.path.endswith(".json")])
            found = [FileObject.model_validate_json(content) for content in read if content is not None]
        return [file for file in found if purpose in {None, file.purpose}]

    def _of(self, tenant: str) -> ObjectStore:
        return self._objects.of_tenant(tenant).under("openai", "files")

    def _read(self, tenant: str, file_id: str, part: str) -> bytes:
        content = self._of(tenant).get(f"{file_id}.{part}") if _ID.fullmatch(file_id) else None
        if content is None:
            raise NotFound(f"There is no file {file_id[:80]!r}.", field="id")
        return content
