"""GPU memory is read from torch at each scrape, and has no metric without a GPU."""

from prometheus_client import CollectorRegistry, generate_latest

from shared.serving.gpu_memory import GpuMemory


class TwoDevices:
    def is_available(self):
        return True

    def device_count(self):
        return 2

    def mem_get_info(self, device):
        return (10 * (device + 1), 100)

    def memory_allocated(self, device):
        return 7 * device


def text_of(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def test_each_device_has_used_free_and_allocated_bytes_and_none_without_a_gpu():
    text = text_of(GpuMemory(TwoDevices()))
    assert 'fovea_gpu_memory_used_bytes{device="0"} 90.0' in text
    assert 'fovea_gpu_memory_free_bytes{device="1"} 20.0' in text
    assert 'fovea_gpu_memory_allocated_bytes{device="1"} 7.0' in text
    assert text_of(GpuMemory()) == ""
