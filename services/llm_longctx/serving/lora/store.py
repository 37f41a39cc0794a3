"""Store of LoRA adapters: a tenant's own, on every replica as soon as they are added, and those of the server's folder.

tenants/<digest>/lora-adapters/<name>/<sha256>.safetensors   matrices
tenants/<digest>/lora-adapters/<name>/facts.json             facts and configuration; without them there is no adapter
FOVEA_LLM_ADAPTERS/<name>/adapter_config.json                shared: what peft's `save_pretrained` writes
FOVEA_LLM_ADAPTERS/<name>/adapter_model.safetensors
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load

from fovea.api.lora import LORA_NAME, LoraAdapterEntry
from fovea.errors import Conflict, InvalidOption, Malformed, NotFound, QueueFull, TooLarge
from shared.lm.decoder import Decoder
from shared.lm.lora import LoraAdapter, build_adapter
from shared.lm.lora_config import parse_lora_config
from shared.storage import ObjectStore

MAX_ADAPTERS = 64
"""Adapters of one tenant."""

MAX_BYTES = 256 * 2**20
"""Bytes of one adapter's file."""

MAX_TOTAL_BYTES = 2**30
"""Bytes of all files of one tenant."""

MAX_CONFIG_BYTES = 64 * 2**10
"""Bytes of a configuration."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The two files of an adapter: its configuration, parsed, and its matrices."""

    config: Mapping[str, Any]
    weights: bytes

    @property
    def sha256(self) -> str:
        """Digest of both."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode() + b"\0" + self.weights).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> AdapterFiles:
        """Read a folder.

        Raises NotFound: there is no adapter; TooLarge: its file is larger than any adapter may be; Malformed: its
        configuration is not JSON.
        """
        config, weights = folder / _CONFIG, folder / _WEIGHTS
        if not config.is_file() or not weights.is_file():
            raise NotFound(f"{folder.name} has no {_CONFIG} and {_WEIGHTS}.", hint="Save it with peft.", field="name")
        if (size := weights.stat().st_size) > MAX_BYTES or config.stat().st_size > MAX_CONFIG_BYTES:
            raise TooLarge(f"{folder.name} has {size:,} bytes; an adapter has at most {MAX_BYTES:,}.", field="weights")
        try:
            return cls(json.loads(config.read_bytes()), weights.read_bytes())
        except ValueError as error:
            raise Malformed(f"{_CONFIG} of {folder.name} is not JSON.", field="config") from error

    def build(self, model: Decoder) -> LoraAdapter:
        """Check and fit them to a decoder; raises as `parse_lora_config` and `build_adapter`."""
        if not isinstance(self.config, Mapping):
            raise Malformed(f"{_CONFIG} is not a JSON object.", field="config")
        if len(json.dumps(self.config)) > MAX_CONFIG_BYTES:
            raise TooLarge(f"{_CONFIG} has more than {MAX_CONFIG_BYTES:,} bytes.", field="config")
        config = parse_lora_config(self.config)
        try:
            tensors = load(self.weights)
        except (SafetensorError, ValueError, KeyError) as error:
            raise Malformed(f"The weights can't be read as safetensors: {error}.", field="weights") from error
        return build_adapter(config, tensors, model, self.sha256)


class _Stored(BaseModel):
    entry: LoraAdapterEntry
    config: str  # as JSON in ASCII: it may hold anything that JSON can


class LoraStore:
    """The adapters that one tenant may name. Calls block."""

    def __init__(self, objects: ObjectStore | None, folder: Path | None, model: str) -> None:
        """Keep them below a tenant's store, None keeps nothing; those in `folder` adapt `model`."""
        self._objects = None if objects is None else objects.under("lora-adapters")
        self._folder, self._model = folder, model

    def add(self, name: str, files: AdapterFiles, built: LoraAdapter) -> LoraAdapterEntry:
        """Store an adapter of the model that it was built for.

        Raises Conflict: the tenant has one of that name; QueueFull: the tenant has too many; InvalidOption: nothing is
        stored here.
        """
        store = self._require()
        self._check_room(len(files.weights))
        entry = describe(name, self._model, files, built)
        path = f"{name}/{entry.sha256}.safetensors"
        if self.find(name) is None:
            store.put(path, files.weights)
            content = _Stored(entry=entry, config=json.dumps(files.config)).model_dump_json().encode()
            if store.create(f"{name}/facts.json", content):
                return entry
            if (first := self.find(name)) is None or first.sha256 != entry.sha256:  # another was faster
                store.delete(path)
        raise Conflict(f"There is an adapter {name!r} already.", hint="Delete it first, or choose another name.")

    def find(self, name: str) -> LoraAdapterEntry | None:
        """The facts of an adapter, the tenant's own before a shared one; None where there is none."""
        stored = self._stored(name)
        return self._shared(name) if stored is None else stored.entry

    def read(self, entry: LoraAdapterEntry) -> AdapterFiles:
        """The files of an adapter. Raises NotFound: It has just been deleted."""
        if entry.is_shared and self._folder is not None:
            return AdapterFiles.read(self._folder / entry.id)
        stored = self._stored(entry.id)
        weights = self._require().get(f"{entry.id}/{entry.sha256}.safetensors")
        if stored is None or weights is None:
            raise unknown(entry.id, self.list_all())
        return AdapterFiles(json.loads(stored.config), weights)

    def read_folder(self, path: str) -> AdapterFiles:
        """The files of a folder below the server's, as vLLM's clients name it.

        Raises InvalidOption: the server has no folder, or it lies elsewhere; NotFound: there is no adapter.
        """
        if self._folder is None:
            detail = "This server loads no adapters from its files: FOVEA_LLM_ADAPTERS is not set."
            raise InvalidOption(detail, hint="Upload it: POST /v1/lora-adapters.", field="lora_path")
        root = self._folder.resolve()
        wanted = (root / path).resolve()
        if not wanted.is_relative_to(root):
            detail = "lora_path must lie in the folder that FOVEA_LLM_ADAPTERS names."
            raise InvalidOption(detail, hint="Give a path relative to it.", field="lora_path")
        return AdapterFiles.read(wanted)

    def delete(self, name: str) -> None:
        """Delete one of the tenant's adapters; requests that have begun go on with it.

        Raises NotFound: There is none.
        """
        if (stored := self._stored(name)) is None:
            raise unknown(name, self.list_all())
        store = self._require()
        store.delete(f"{name}/facts.json")
        store.delete(f"{name}/{stored.entry.sha256}.safetensors")

    def list_all(self) -> list[LoraAdapterEntry]:
        """All adapters, by name."""
        own = {name: stored.entry for name in self._names() if (stored := self._stored(name)) is not None}
        folders = sorted(self._folder.iterdir()) if self._folder is not None and self._folder.is_dir() else []
        shared = {one.name: entry for one in folders if (entry := self._shared(one.name)) is not None}
        return [entry for _, entry in sorted((shared | own).items())]

    def _names(self) -> Iterator[str]:
        paths = [] if self._objects is None else [one.path for one in self._objects.list_objects()]
        return (path.removesuffix("/facts.json") for path in paths if path.endswith("/facts.json"))

    def _stored(self, name: str) -> _Stored | None:
        if self._objects is None or not re.fullmatch(LORA_NAME, name):
            return None
        content = self._objects.get(f"{name}/facts.json")
        return None if content is None else _Stored.model_validate_json(content)

    def _shared(self, name: str) -> LoraAdapterEntry | None:
        if self._folder is None or not re.fullmatch(LORA_NAME, name):
            return None
        folder = self._folder / name
        try:
            facts = [(folder / file).stat() for file in (_CONFIG, _WEIGHTS)]
            return _describe_folder(folder, self._model, tuple(one.st_mtime_ns for one in facts), facts[1].st_size)
        except (OSError, NotFound, TooLarge, Malformed):
            return None

    def _check_room(self, size: int) -> None:
        if size > MAX_BYTES:
            raise TooLarge(f"The adapter has {size:,} bytes; at most {MAX_BYTES:,} are stored.", field="weights")
        held = [one for one in self._require().list_objects() if one.path.endswith(".safetensors")]
        if len(held) >= MAX_ADAPTERS:
            raise QueueFull(f"There are {MAX_ADAPTERS} adapters already.", hint="Delete some.")
        if sum(one.size for one in held) + size > MAX_TOTAL_BYTES:
            raise QueueFull(f"Adapters may take {MAX_TOTAL_BYTES:,} bytes together.", hint="Delete some.")

    def _require(self) -> ObjectStore:
        if self._objects is None:
            detail = "Adapters are stored in the object store, and this service has none."
            raise InvalidOption(detail, hint="Put them into the folder of FOVEA_LLM_ADAPTERS.", field="name")
        return self._objects


def describe(name: str, model: str, files: AdapterFiles, built: LoraAdapter) -> LoraAdapterEntry:
    """The facts of an adapter that was built."""
    return LoraAdapterEntry(
        id=name,
        parent=model,
        created=datetime.now(UTC),
        rank=max(part.down.shape[0] for part in built.parts.values()),
        modules=len(built.parts),
        nbytes=len(files.weights),
        sha256=built.digest,
    )


@lru_cache(maxsize=256)
def _describe_folder(folder: Path, model: str, changed_ns: tuple[int, ...], size: int) -> LoraAdapterEntry:
    """The facts of a folder, read anew when a file changes; what is in it is checked when it is used."""
    files = AdapterFiles.read(folder)
    facts: Mapping[str, Any] = files.config if isinstance(files.config, Mapping) else {}
    ranks = [facts.get("r"), *dict(facts.get("rank_pattern") or {}).values()]
    return LoraAdapterEntry(
        id=folder.name,
        parent=model,
        created=datetime.fromtimestamp(max(changed_ns) / 1e9, UTC),
        rank=max((r for r in ranks if isinstance(r, int)), default=0),
        modules=files.weights[: 2**20].count(b".lora_A.weight"),
        nbytes=size,
        sha256=files.sha256,
        is_shared=True,
    )


def unknown(name: str, known: list[LoraAdapterEntry]) -> NotFound:
    """The error about an adapter that is not there."""
    listed = ", ".join(one.id for one in known[:20]) or "none"
    return NotFound(f"There is no adapter {name[:80]!r} of yours.", hint=f"Known are: {listed}.", field="name")
