"""Connections to an Open Inference v2 server: how many calls are under way at once, and through what each goes.

An HTTP client belongs to one thread, so each has a thread of its own; one gRPC client serves all calls. A connection
may have a region of shared memory for what is sent, where client and server share a host. Knows `tritonclient`; knows
nothing about models.
"""

import contextlib
import importlib
import ipaddress
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import LifoQueue
from typing import Any, TypeVar

import numpy as np
from tritonclient.utils import InferenceServerException

from shared.telemetry import log

T = TypeVar("T")

MIN_REGION_BYTES = 2**20
"""Smallest region of shared memory; what is sent in less is not worth one."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Linux keeps regions, not a temporary file


def is_this_host(address: str) -> bool:
    """Whether `host:port` is on loopback, so that a server there may see this machine's shared memory."""
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class InputRegion:
    """A region of shared memory that one connection sends from, registered with the server. Grows as needed."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._library: Any = importlib.import_module("tritonclient.utils.shared_memory")
        self._handle: Any = None
        self._size = 0
        self.name = ""

    def write(self, arrays: list[np.ndarray]) -> list[int]:
        """Write arrays one behind the other, into a larger region if need be; returns where each begins.

        Raises:
            InferenceServerException: The server can't open the region: it is on another host or in another container.
        """
        offsets: list[int] = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
        if offsets[-1] > self._size:
            self._replace(max(2 * offsets[-1], MIN_REGION_BYTES))
        self._library.set_shared_memory_region(self._handle, arrays)
        return offsets[:-1]

    def close(self) -> None:
        """Take it from the server, and free it."""
        if self._handle is None:
            return
        with contextlib.suppress(InferenceServerException, OSError):
            self._client.unregister_system_shared_memory(self.name)
        self._library.destroy_shared_memory_region(self._handle)
        self._handle, self._size = None, 0

    def _replace(self, size: int) -> None:
        self.close()
        self.name = f"fovea-{os.getpid()}-{secrets.token_hex(6)}"
        self._handle = self._library.create_shared_memory_region(self.name, f"/{self.name}", size, create_only=True)
        try:
            self._client.register_system_shared_memory(self.name, f"/{self.name}", size)
        except BaseException:
            self.close()
            raise
        self._size = size


class TritonConnection:
    """One call at a time through a client, on the client's own thread if it has one."""

    def __init__(self, connect: Callable[[], Any], *, has_thread: bool) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="triton") if has_thread else None
        self.region: InputRegion | None = None
        try:
            self.client = self.call(connect)
        except BaseException:
            self._stop_thread()
            raise

    def call(self, work: Callable[[], T]) -> T:
        """Do work where the client may be used."""
        return work() if self._thread is None else self._thread.submit(work).result()

    def close(self, *, owns_client: bool) -> None:
        """Free the region, close the client if it is this connection's own, and end the thread."""
        if self.region is not None:
            self.call(self.region.close)
        if owns_client:
            self.call(self.client.close)
        self._stop_thread()

    def _stop_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()


class ConnectionPool:
    """Up to `size` connections, opened by `connect` as they are needed; a call beyond waits for a free one.

    One client serves all if `is_shared`; otherwise each has its own, with a thread. `has_memory` tries shared memory.
    """

    def __init__(self, connect: Callable[[], Any], size: int, *, is_shared: bool, has_memory: bool) -> None:
        self._connect, self._is_shared, self.has_memory = connect, is_shared, has_memory and _SHARED_MEMORY.is_dir()
        self._client = connect() if is_shared else None
        self._places = threading.Semaphore(size)
        self._free: LifoQueue[TritonConnection] = LifoQueue()
        self._lock, self._opened, self._is_closed = threading.Lock(), 0, False

    @contextlib.contextmanager
    def connection(self) -> Iterator[TritonConnection]:
        """A connection that nobody else uses meanwhile: the one that was used last, so that few stay open."""
        with self._places:
            connection = self._take()
            try:
                yield connection
            finally:
                self._free.put(connection)

    def refuse_memory(self, reason: str) -> None:
        """Send over the network from now on."""
        self.has_memory = False
        log().info("no shared memory with the inference server", reason=reason)

    def close(self) -> None:
        """Close all connections, each once its call is over; closing twice does no harm."""
        with self._lock:
            opened = 0 if self._is_closed else self._opened
            self._is_closed = True
        for _ in range(opened):
            self._free.get().close(owns_client=not self._is_shared)
        if opened and self._client is not None:
            self._client.close()

    def _take(self) -> TritonConnection:
        with self._lock:
            if self._is_closed:
                message = "the engine is closed"
                raise RuntimeError(message)
            if not self._free.empty():
                return self._free.get()
            connect = self._connect if self._client is None else lambda: self._client
            made = TritonConnection(connect, has_thread=not self._is_shared)
            self._opened += 1
            return made
