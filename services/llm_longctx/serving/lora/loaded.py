"""Adapters in memory: those in use, and as many of the latest as fit. Knows digests and bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from fovea.errors import QueueFull
from shared.lm.lora import LoraAdapter

MAX_LOADED_BYTES = 2**30
"""Bytes of the adapters in memory, next to the model."""


class LoadedAdapters:
    """The adapters of one decoder by digest. Any thread may call it."""

    def __init__(self, most: int = MAX_LOADED_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[str, LoraAdapter] = OrderedDict()
        self._alive: WeakValueDictionary[str, LoraAdapter] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._building: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def get(self, digest: str, build: Callable[[], LoraAdapter]) -> LoraAdapter:
        """An adapter, built where nobody holds it. Raises QueueFull: The adapters in use leave no room for it."""
        with self._lock:
            building = self._building.setdefault(digest, threading.Lock())
        with building:  # each is read once, and none waits for another's files
            found = self._alive.get(digest)
            return self._keep(digest, build() if found is None else found)

    def _keep(self, digest: str, found: LoraAdapter) -> LoraAdapter:
        with self._lock:
            self._alive[digest] = self._kept[digest] = found
            self._kept.move_to_end(digest)
            while self._held_bytes() > self._most and len(self._kept) > 1:
                self._kept.popitem(last=False)
            if self._held_bytes() > self._most:
                self._kept.pop(digest)
                detail = f"The adapters in use fill the {self._most:,} bytes that they may take."
                raise QueueFull(detail, hint="Send the request again when others have ended.", retry_after=5)
            return found

    def _held_bytes(self) -> int:
        return sum(one.nbytes for one in list(self._alive.values()))
