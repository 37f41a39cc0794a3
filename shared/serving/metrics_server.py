"""Metrics port: the metrics of this process on a port of its own, without a key.

For a Prometheus that the network lets in. Runs on threads of its own, so that it answers while an event loop is busy.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared import telemetry

_RETRY_S = 1.0  # between two tries to get the port


class MetricsServer:
    """Serves `/metrics` in the background. `start` and `stop` belong to one event loop."""

    def __init__(self, host: str, port: int) -> None:
        """Serve on `host`; port 0 serves nothing."""
        self._address = (host, port)
        self._server: Any = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen as soon as the port is free: a process that is about to stop may still have it."""
        watch_gpu_memory()
        if self._address[1]:
            self._starting = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Free the port."""
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        if self._server is not None:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()

    async def _listen(self) -> None:
        (host, port), is_told = self._address, False
        while True:
            try:
                self._server, _thread = start_http_server(port, host)
            except OSError as error:
                if not is_told:
                    telemetry.log().warning("no metrics yet", host=host, port=port, why=str(error))
                is_told = True
                await asyncio.sleep(_RETRY_S)
            else:
                return


class GpuMemory(Collector):
    """Collects the memory of all GPUs that torch sees; nothing where there is none."""

    def __init__(self, cuda: Any = None) -> None:
        self._cuda = cuda

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Used and free bytes of each device, by whomever, and those that tensors of this process hold."""
        used = GaugeMetricFamily("fovea_gpu_memory_used_bytes", "Memory of a GPU that is in use.", labels=["device"])
        free = GaugeMetricFamily("fovea_gpu_memory_free_bytes", "Memory of a GPU that is free.", labels=["device"])
        told = "Memory of a GPU in tensors of this process."
        held = GaugeMetricFamily("fovea_gpu_memory_allocated_bytes", told, labels=["device"])
        cuda = self._cuda or find_cuda()
        for device in range(cuda.device_count()) if cuda is not None and cuda.is_available() else ():
            left, total = cuda.mem_get_info(device)
            used.add_metric([str(device)], total - left)
            free.add_metric([str(device)], left)
            held.add_metric([str(device)], cuda.memory_allocated(device))
        return (used, free, held) if used.samples else ()


@cache
def watch_gpu_memory() -> None:
    """Show GPU memory in this process's metrics from now on; may be called again."""
    REGISTRY.register(GpuMemory())


def find_cuda() -> Any:
    """`torch.cuda`, if torch is here and CUDA was begun with: who only looks must not be what begins it."""
    cuda = sys.modules.get("torch.cuda")
    return cuda if getattr(cuda, "is_initialized", bool)() else None  # another thread may be importing it
