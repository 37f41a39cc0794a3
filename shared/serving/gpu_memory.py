"""GPU memory as metrics: what each device has and what this process holds of it, asked at each scrape."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GpuMemory(Collector):
    """Collects the memory of all GPUs that torch sees; nothing where there is none."""

    def __init__(self, cuda: Any = None) -> None:
        """Ask `torch.cuda`, or what stands for it."""
        self._cuda = cuda

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Used and free bytes of each device, by whomever, and those that tensors of this process hold."""
        used = GaugeMetricFamily("fovea_gpu_memory_used_bytes", "Memory of a GPU that is in use.", labels=["device"])
        free = GaugeMetricFamily("fovea_gpu_memory_free_bytes", "Memory of a GPU that is free.", labels=["device"])
        held = GaugeMetricFamily(
            "fovea_gpu_memory_allocated_bytes", "Memory of a GPU in tensors of this process.", labels=["device"]
        )
        cuda = self._cuda or _find_cuda()
        for device in range(cuda.device_count()) if cuda is not None and cuda.is_available() else ():
            left, total = cuda.mem_get_info(device)
            used.add_metric([str(device)], total - left)
            free.add_metric([str(device)], left)
            held.add_metric([str(device)], cuda.memory_allocated(device))
        return (used, free, held) if used.samples else ()


def watch_gpu_memory() -> None:
    """Show GPU memory in this process's metrics from now on; may be called again."""
    if not _watched:
        _watched.append(GpuMemory())
        REGISTRY.register(_watched[0])


_watched: list[GpuMemory] = []


def _find_cuda() -> Any:
    """`torch.cuda`, if torch is here and CUDA was begun with: a scrape must not be what begins it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
