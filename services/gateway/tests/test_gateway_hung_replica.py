"""A replica process is stopped (SIGSTOP): its connections stay open and nothing answers. Nobody waits for it."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import grpc
import httpx2
import pytest
import redis

from fovea.api.replica import HEARTBEAT_TTL_S, ReplicaRecord, replicas_key
from services.gateway.app import build_gateway
from services.gateway.grpc.server import serve_grpc
from services.gateway.routing import replica_registry
from services.gateway.server import create_server
from services.gateway.tests.conftest import listening
from shared.rpc import open_inference_pb2 as pb
from shared.settings import Settings, environment
from tests.harness.waiting import until, wait_until


@pytest.fixture
def replicas(redis_url, tmp_path):
    """Two replica processes by their process ids, ready and known to Redis."""
    env = environment(FOVEA_REDIS_URL=redis_url, FOVEA_DATA_DIR=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))
    started = [subprocess.Popen([sys.executable, "-m", "shared.serving.tests.toy_replica"], env=env) for _ in range(2)]
    with redis.Redis.from_url(redis_url) as link:

        def known():
            return map(ReplicaRecord.model_validate_json, link.hvals(replicas_key("toy")))

        wait_until(lambda: sum(one.ready for one in known()) == 2, 90, "the replicas' start")
    yield {process.pid: process for process in started}
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
async def app(redis_url, tmp_path, monkeypatch, replicas):
    monkeypatch.setattr(replica_registry, "ABORT_AFTER_S", 3.0)
    made = build_gateway(Settings(redis_url=redis_url, data_dir=tmp_path, http_port=0, grpc_port=0))
    registry = made.state.gateway.registry
    await registry.start()
    yield made
    await made.state.gateway.stop()


def stop_busiest(app: Any, replicas: dict[int, subprocess.Popen[bytes]]) -> int:
    """SIGSTOP the replica with the most requests under way; returns how many those are."""
    busiest = max(app.state.gateway.registry.list_ready("toy"), key=lambda replica: len(replica.attempts))
    os.kill(busiest.record.pid, signal.SIGSTOP)
    assert busiest.record.pid in replicas
    return len(busiest.attempts)


async def test_requests_under_way_to_a_replica_that_hangs_are_answered_by_another(app, replicas):
    server = create_server(app, app.state.gateway.settings)
    async with listening(server) as url, httpx2.AsyncClient(base_url=url, timeout=60) as client:
        ask = [client.post("/v1/echo", json={"text": str(n), "sleep": 1}) for n in range(6)]
        asking = [asyncio.create_task(call) for call in ask]
        known = app.state.gateway.registry.list_alive("toy")
        await until(lambda: sum(len(replica.attempts) for replica in known) == 6, 60)
        assert stop_busiest(app, replicas) >= 2
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 6
        assert [answer.json()["text"] for answer in answers] == [str(n) for n in range(6)]


async def test_replicas_whose_records_are_not_renewed_are_asked_and_serve_on(app, replicas, monkeypatch):
    registry = app.state.gateway.registry
    known = registry.list_ready("toy")
    monkeypatch.setattr(registry, "_update_service", lambda *_: None)  # as if no renewal came through
    for replica in known:
        replica.changed -= HEARTBEAT_TTL_S - 0.2
    await asyncio.sleep(2)
    assert set(registry.list_ready("toy")) == set(known)
    for pid in replicas:
        os.kill(pid, signal.SIGKILL)
    for replica in known:
        replica.changed -= HEARTBEAT_TTL_S
    await asyncio.sleep(1)
    assert registry.list_ready("toy") == []


async def test_a_call_over_grpc_is_answered_by_another(app, replicas):
    server, port = await serve_grpc(app.state.gateway, "127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelMetadata",
                request_serializer=pb.ModelMetadataRequest.SerializeToString,
                response_deserializer=pb.ModelMetadataResponse.FromString,
            )
            for _ in range(20):  # both have a connection
                await call(pb.ModelMetadataRequest(name="toy/echo"), timeout=20)
            for pid in replicas:
                os.kill(pid, signal.SIGSTOP)
            asking = asyncio.ensure_future(call(pb.ModelMetadataRequest(name="toy/echo"), timeout=60))
            known = app.state.gateway.registry.list_alive("toy")
            await until(lambda: asking.done() or any(replica.attempts for replica in known), 60)
            assert not asking.done(), asking
            [idle] = [replica for replica in known if not replica.attempts]
            os.kill(idle.record.pid, signal.SIGCONT)
            assert (await asking).name == "toy/echo"
    finally:
        await server.stop(0)
