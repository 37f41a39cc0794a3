"""Capture store: captures that are too large for an answer, as NPZ files of a tenant that are forgotten after a day.

tenants/<digest>/captures/<id>.npz
"""

import io
import re
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import numpy as np

from fovea.errors import InvalidOption, NotFound
from shared.storage import ExpiringObjects, ObjectStore

MAX_FILES = 100
"""Files of one tenant; the oldest give way."""

MAX_BYTES = 2**30
"""Bytes of the files of one tenant; the oldest give way."""

MAX_AGE = timedelta(days=1)

_ID = re.compile(r"capture-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Captures of one answer at one site.

    Attributes:
        rows: By position, float32 [D] or [heads,d].
        prompt: Tokens of the answer's prompt.
        weights: Beginning of the digest of the weights that it was captured under.
    """

    rows: dict[int, np.ndarray]
    prompt: int
    weights: str


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
            hint = f"Captures are kept for a day, the newest {MAX_FILES} of them; send its request again."
            raise NotFound(f"There is no capture {name[:80]!r}.", hint=hint, field="id")
        return content

    def read_rows(self, name: str, site: str) -> StoredRows:
        """The activations of a site in the file of an id.

        Raises:
            NotFound: There is no such file, or it was forgotten.
            InvalidOption: It does not have the site.
        """
        with np.load(io.BytesIO(self.read(name))) as arrays:
            indices = [key.removesuffix(".site") for key in arrays.files if key.endswith(".site")]
            held = {i: str(arrays[f"{i}.site"]) for i in indices}
            rows = {
                int(at): row
                for i in held
                if held[i] == site
                for at, row in zip(arrays[f"{i}.positions"], arrays[f"{i}.values"], strict=True)
            }
            if not rows:
                has = ", ".join(dict.fromkeys(held.values())) or "no activation"
                raise InvalidOption(f"{name} has nothing of {site}; it has {has}.", field="from")
            return StoredRows(rows, int(arrays["prompt"]), str(arrays["weights"]))

    def delete(self, name: str) -> None:
        """Delete the file of an id; raises NotFound."""
        self.read(name)
        self._objects.delete(f"{name}.npz")
