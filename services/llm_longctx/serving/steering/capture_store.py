"""Capture store: captures that are too large for an answer, as NPZ files of a tenant that are forgotten after a day.

tenants/<digest>/captures/<id>.npz
"""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import uuid4

from shared.errors import NotFound
from shared.storage import ExpiringObjects, ObjectStore

MAX_FILES = 100
"""Files of one tenant; the oldest give way."""

MAX_BYTES = 2**30
"""Bytes of the files of one tenant; the oldest give way."""

MAX_AGE = timedelta(days=1)

_ID = re.compile(r"capture-[0-9a-f]{32}")


class CaptureStore:
    """The captures of one tenant. Calls block."""

    def __init__(self, objects: ObjectStore) -> None:
        """Keep them below a tenant's store."""
        self._objects = ExpiringObjects(objects.under("captures"), MAX_AGE, MAX_FILES, MAX_BYTES)

    def add(self, npz: bytes) -> str:
        """Store a file; its id. Old ones are deleted."""
        name = f"capture-{uuid4().hex}"
        self._objects.put(f"{name}.npz", npz)
        return name

    def read(self, name: str) -> bytes:
        """The file of an id.

        Raises:
            NotFound: There is none, or it was forgotten.
        """
        content = self._objects.get(f"{name}.npz") if _ID.fullmatch(name) else None
        if content is None:
            raise NotFound(f"There is no capture {name[:80]!r}.", hint="They are kept for a day.", field="id")
        return content

    def delete(self, name: str) -> None:
        """Delete the file of an id; raises NotFound."""
        self.read(name)
        self._objects.delete(f"{name}.npz")
