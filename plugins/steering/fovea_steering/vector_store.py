"""Store of steering vectors: a tenant's, by name and version, on every replica as soon as they are made.

tenants/<digest>/steering-vectors/<name>/<version>.safetensors     vectors by layer
tenants/<digest>/steering-vectors/<name>/<version>.json            facts; without them there is no version
tenants/<digest>/steering-vectors/<name>/<version>.gone            the highest version that was deleted

A version is never given out twice: who wrote down `calm@2` gets that vector or none.
"""

import re

import torch
from safetensors.torch import load, save
from torch import Tensor

from fovea.api.steering import VECTOR_NAME, SteeringVector
from fovea.errors import InvalidOption, NotFound, QueueFull
from shared.storage import ObjectStore

MAX_VERSIONS = 500
"""Versions of all vectors of one tenant."""

MAX_NAMES = 10_000
"""Names that a tenant may ever use: of a deleted one its last version is remembered."""

_ID = re.compile(rf"({VECTOR_NAME[1:-1]})(?:@([0-9]{{1,9}}))?")


class VectorStore:
    """The steering vectors of one tenant. Calls block."""

    def __init__(self, objects: ObjectStore | None) -> None:
        """Keep them below a tenant's store; None keeps nothing."""
        self._objects = None if objects is None else objects.under("steering-vectors")

    def add(self, facts: SteeringVector, directions: dict[int, Tensor]) -> SteeringVector:
        """Store directions [D] by layer as the next version of a name; returns the facts with that version.

        Raises:
            InvalidOption: Nothing is stored here.
            QueueFull: The tenant has too many.
        """
        store = self._store
        self._check_room(facts.name)
        content = save({str(layer): one.contiguous() for layer, one in directions.items()})
        version = self._take_version(facts.name, content)
        stored = facts.model_copy(update={"version": version, "id": f"{facts.name}@{version}"})
        store.put(f"{facts.name}/{version}.json", stored.model_dump_json().encode())
        return stored

    def get(self, name: str) -> SteeringVector:
        """The facts of `name@version`, or of the newest version of `name`.

        Raises:
            NotFound: There is none.
        """
        label, version = self._resolve(name)
        content = self._store.get(f"{label}/{version}.json")
        if content is None:
            raise _unknown(name, self.list_ids())
        return SteeringVector.model_validate_json(content)

    def read(self, facts: SteeringVector) -> dict[int, Tensor]:
        """The directions [D] of a stored vector by layer.

        Raises:
            NotFound: It has just been deleted.
        """
        content = self._store.get(f"{facts.name}/{facts.version}.safetensors")
        if content is None:
            raise _unknown(facts.id, self.list_ids())
        return {int(layer): one.to(torch.float32) for layer, one in load(content).items()}

    def delete(self, name: str) -> list[int]:
        """Delete `name@version`, or every version of `name`: the versions that are gone.

        Raises:
            NotFound: There is none.
        """
        label, version = self._resolve(name)
        gone = [version] if "@" in name else self._numbers(label, "json")
        store = self._store
        if "@" in name:
            self.get(name)
        store.put(f"{label}/{max(gone)}.gone", b"")  # before the files: nobody may take the number in between
        store.delete(*(f"{label}/{one}.{kind}" for one in gone for kind in ("json", "safetensors")))
        deleted = self._numbers(label, "gone")
        store.delete(*(f"{label}/{one}.gone" for one in deleted[:-1]))
        return gone

    def list_vectors(self) -> list[SteeringVector]:
        """All vectors, newest first."""
        store = self._store
        paths = [one.path for one in store.list_objects() if one.path.endswith(".json")]
        found = [SteeringVector.model_validate_json(content) for path in paths if (content := store.get(path))]
        return sorted(found, key=lambda one: one.created, reverse=True)

    def list_ids(self) -> list[str]:
        """`name@version` of all vectors, in order."""
        paths = [one.path for one in self._store.list_objects()]
        return sorted(path.removesuffix(".json").replace("/", "@") for path in paths if path.endswith(".json"))

    def _resolve(self, name: str) -> tuple[str, int]:
        if (match := _ID.fullmatch(name)) is None:
            raise _unknown(name, self.list_ids())
        if match[2] is not None:
            return match[1], int(match[2])
        if not (versions := self._numbers(match[1], "json")):
            raise _unknown(name, self.list_ids())
        return match[1], max(versions)

    def _check_room(self, name: str) -> None:
        paths = [one.path for one in self._store.list_objects()]
        if sum(path.endswith(".json") for path in paths) >= MAX_VERSIONS:
            raise QueueFull(f"There are {MAX_VERSIONS} steering vectors already.", hint="Delete some.")
        names = {path.partition("/")[0] for path in paths}
        if name not in names and len(names) >= MAX_NAMES:
            raise QueueFull(
                f"{MAX_NAMES:,} names of steering vectors were used already.", hint="Use one of them again."
            )

    def _take_version(self, name: str, content: bytes) -> int:
        """Store the numbers of a vector under the next version that nobody has had."""
        store, version = self._store, max(self._numbers(name), default=0)
        while True:
            version += 1
            path = f"{name}/{version}.safetensors"
            if not store.create(path, content):  # another has just taken it
                continue
            if version > max(self._numbers(name, "gone"), default=0):
                return version
            store.delete(path)  # another has taken it and deleted it again

    def _numbers(self, name: str, kind: str = "") -> list[int]:
        """Versions that have a file of a kind, or any file, in order."""
        paths = [one.path.split(".") for one in self._store.under(name).list_objects()]
        return sorted({int(number) for number, suffix in paths if kind in {"", suffix}})

    @property
    def _store(self) -> ObjectStore:
        if self._objects is None:
            detail = "Steering vectors are stored in the object store, and this service has none."
            raise InvalidOption(detail, hint="Give the numbers themselves as `vector`.", field="vector")
        return self._objects


def _unknown(name: str, known: list[str]) -> NotFound:
    listed = ", ".join(known[:20]) or "none"
    return NotFound(f"There is no steering vector {name[:80]!r}.", hint=f"Known are: {listed}.", field="vector")
