"""Metrics of a replica are read on a port of their own, without a key, and the port is waited for."""

import asyncio
import socket

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from shared.serving import metrics_server
from shared.serving.metrics_server import GpuMemory, MetricsServer
from tests.harness.waiting import free_port, until


async def read(port):
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


async def test_replica_counts_its_requests_there(start_replica, tmp_path):
    port = free_port()
    replica = await start_replica(data_dir=tmp_path, metrics_port=port)
    async with httpx2.AsyncClient() as client:
        assert (await client.post(f"{replica.http}/v1/echo", json={"text": "hello"})).status_code == 200
    assert 'fovea_batch_size_count{model="toy/echo",service="toy"}' in await read(port)
    await replica.stop()
    socket.create_server(("127.0.0.1", port)).close()


@pytest.fixture
def tries(monkeypatch):
    found = []

    def start(port, host):
        found.append(port)
        return start_http_server(port, host)

    monkeypatch.setattr(metrics_server, "start_http_server", start)
    monkeypatch.setattr(metrics_server, "_RETRY_S", 0.01)
    return found


async def test_port_that_a_predecessor_still_has_is_waited_for(tries):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = MetricsServer("127.0.0.1", port)
        server.start()
        await until(lambda: len(tries) >= 3, 60)
    await asyncio.wait_for(server._starting, 60)
    assert "python_info" in await read(port)
    await server.stop()
    socket.create_server(("127.0.0.1", port)).close()


def scrape(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


class TwoDevices:
    def is_available(self):
        return True

    def device_count(self):
        return 2

    def mem_get_info(self, device):
        return (10 * (device + 1), 100)

    def memory_allocated(self, device):
        return 7 * device


def test_each_device_has_used_free_and_allocated_bytes_and_none_without_a_gpu():
    text = scrape(GpuMemory(TwoDevices()))
    assert 'fovea_gpu_memory_used_bytes{device="0"} 90.0' in text
    assert 'fovea_gpu_memory_free_bytes{device="1"} 20.0' in text
    assert 'fovea_gpu_memory_allocated_bytes{device="1"} 7.0' in text
    assert scrape(GpuMemory()) == ""
