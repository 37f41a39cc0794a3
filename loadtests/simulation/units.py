"""Unit costs, measured on this machine: processor seconds of a real Redis, a gateway's own code and a real Prometheus.

Processor time of the process that does the work, so that other load on the machine counts little. Records are those
that the six services announce.
"""

import asyncio
import json
import shutil
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil

from fovea.api.replica import ReplicaRecord, replicas_key
from services.gateway.policy.caller import Caller
from services.gateway.policy.fair_queue import FairQueue
from services.gateway.routing.affinity import AffinityKey, held_key
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.jobs.key_limits import open_limit_windows
from shared.jobs.redis_connection import open_async_redis, open_redis
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings
from tests.harness.waiting import free_port

SERVICE = "llm-longctx"
COUNTS = (1, 250, 1000, 2000)
"""Replicas at which the gateway's code is timed."""

CONNECTIONS = 32
"""Connections that send to Redis at once."""

SAMPLES = 600
"""Time series of one pod: what a replica or a gateway that has served for a while shows on /metrics."""

TARGETS = (50, 200)
"""Pods that Prometheus scrapes once a second, at which its processor time is measured."""

PROMETHEUS_S = 40.0


def build_record(number: int, seen: float, service: str = SERVICE, slots: int = 16) -> ReplicaRecord:
    """A record with the routes and models of a replica of llm-longctx."""
    paths = tuple(f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings", "tokenize"))
    own = (*paths, *(f"/v1/sessions/{{session_id}}/{part}" for part in ("", "fork", "export", "state", "documents")))
    return ReplicaRecord(
        id=f"{service}-{number:05d}-0123456789ab",
        service=service,
        http=f"http://10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:34567",
        grpc=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:34568",
        pid=100 + number,
        ready=True,
        models=("smollm2-135m-instruct", "all-minilm-l6-v2", "fovea-titans-mac", "fovea-routing-bytes"),
        routes=own,
        effectful=own[5:],
        affine=own,
        slots=slots,
        memory=0.4321,
        seen=seen,
    )


def measure_redis() -> dict[str, float]:
    """Processor seconds of a real Redis per command, per renewal, per record that is read and per count of a rate.

    As the product runs it, with each write on disk before its answer. `CONNECTIONS` that write at once share the
    disk's time, as a fleet does; `renewal_alone_s` is one that shares it with nobody, `…_volatile_s` one without.
    """
    with tempfile.TemporaryDirectory() as name, RedisServer(Settings(data_dir=Path(name), redis_url=None)) as server:
        process = psutil.Process(server.process.pid if server.process else None)
        blobs = [build_record(number, 1e9 + number).model_dump_json() for number in range(2000)]
        key = replicas_key(SERVICE)

        def spend(commands: Sequence[tuple[str, ...]], connections: int = CONNECTIONS) -> float:
            return asyncio.run(_send(server.url, commands, connections, process))

        renewals = [("HSET", key, str(n), blob) for n, blob in enumerate(blobs)]
        command = spend([("HGET", "nothing", "x")] * 6000)
        renewal, alone = spend(renewals * 3), spend(renewals, 1)
        record = spend([("HGETALL", key)] * 200, 4) / len(blobs)
        count = asyncio.run(_spend_on_counts(server.url, process))
        with open_redis(server.url) as link:
            memory = int(link.memory_usage(key, samples=0)) / len(blobs)
            link.config_set("appendonly", "no")
        volatile, count_volatile = spend(renewals * 3), asyncio.run(_spend_on_counts(server.url, process))
    return {
        "command_s": command,
        "renewal_s": renewal,
        "renewal_alone_s": alone,
        "renewal_volatile_s": volatile,
        "record_s": record,
        "count_s": count,
        "count_volatile_s": count_volatile,
        "record_bytes": len(blobs[0]),
        "memory_bytes": round(memory),
    }


async def _send(url: str, commands: Sequence[tuple[str, ...]], connections: int, process: psutil.Process) -> float:
    """Processor seconds of Redis per command, of so many connections that send one after another."""
    links = [open_async_redis(url, max_connections=1) for _ in range(connections)]
    left = iter(commands)

    async def send(link: Any) -> None:
        for command in left:
            await link.execute_command(*command)

    await asyncio.gather(*(link.ping() for link in links))
    before = sum(process.cpu_times()[:2])
    await asyncio.gather(*map(send, links))
    spent = sum(process.cpu_times()[:2]) - before
    for link in links:
        await link.aclose()
    return spent / len(commands)


async def _spend_on_counts(url: str, process: psutil.Process) -> float:
    """Processor seconds of Redis per request that is counted."""
    pool, windows = open_limit_windows(url)
    turns = iter(range(6000))

    async def count() -> None:
        for number in turns:
            await windows.incr(f"fovea:limits/tenant-{number % 50}", 60, 1)

    before = sum(process.cpu_times()[:2])
    await asyncio.gather(*(count() for _ in range(CONNECTIONS)))
    await pool.disconnect()
    return (sum(process.cpu_times()[:2]) - before) / 6000


def measure_gateway(count: int) -> dict[str, float]:
    """Processor seconds of a gateway of so many replicas, per refresh of the registry and per place and pick."""
    registry = ReplicaRegistry(Settings(redis_url=None, enabled_services=SERVICE, auth="keys"))
    fair, caller, times = FairQueue(Settings(), registry), Caller("alice", frozenset({"infer"})), 2000 // count + 30

    async def take_places() -> None:
        for _ in range(times):
            async with fair.slot(caller, SERVICE, asyncio.get_running_loop().time() + 60):
                pass

    def pick_all(wanted: Sequence[AffinityKey | None]) -> float:
        return _spend(lambda: [registry.pick(SERVICE, (), key) for key in wanted]) / times

    keys = [held_key("alice", f"session-{n}") for n in range(times)]
    refreshes = [_refresh(registry, count, turn) for turn in range(5)]
    return {
        "replicas": count,
        "refresh_s": min(refreshes[1:]),
        "place_s": _spend(lambda: asyncio.run(take_places())) / times,
        "pick_new_s": pick_all(keys),
        "pick_known_s": pick_all(keys),
        "pick_s": pick_all([None] * times),
    }


def _refresh(registry: ReplicaRegistry, count: int, turn: int) -> float:
    """Processor seconds in which a gateway takes over what all replicas renewed."""
    records = [build_record(number, time.time() + turn / 1000) for number in range(count)]
    raw = {record.id.encode(): record.model_dump_json().encode() for record in records}

    def take_over() -> None:
        registry._update_service(SERVICE, raw)
        registry._update_routes()

    return _spend(take_over)


def _spend(work: Callable[[], object]) -> float:
    """Processor seconds of some work of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure_prometheus() -> dict[str, float] | None:
    """Processor seconds and memory of a real Prometheus per scraped sample and per series; None where there is none."""
    if not (binary := shutil.which("prometheus")):
        return None
    few, many = (_scrape(binary, targets) for targets in TARGETS)
    more = (TARGETS[1] - TARGETS[0]) * SAMPLES
    return {
        "sample_s": (many["processor_share"] - few["processor_share"]) / more,
        "series_bytes": (many["memory_bytes"] - few["memory_bytes"]) / more,
        "samples_of_a_pod": SAMPLES,
    }


def _scrape(binary: str, targets: int) -> dict[str, float]:
    """Processor time a second and memory of a Prometheus that scrapes so many pods once a second."""
    page = "".join(
        f'fovea_request_seconds_bucket{{service="llm-longctx",route="/v1/chat/completions",le="{n}"}} {n}\n'
        for n in range(SAMPLES)
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the library's name
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A Prometheus that ends breaks its connections."""

    pods, port = Server(("127.0.0.1", 0), Handler), free_port()
    threading.Thread(target=pods.serve_forever, daemon=True).start()
    places = [{"targets": [f"127.0.0.1:{pods.server_address[1]}"], "labels": {"pod": str(n)}} for n in range(targets)]
    job = {"job_name": "fovea", "scrape_interval": "1s", "static_configs": places}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "prometheus.yml"
        config.write_text(json.dumps({"scrape_configs": [job]}))
        flags = [
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        child = subprocess.Popen([binary, *flags], stderr=subprocess.DEVNULL)
        try:
            time.sleep(10)
            process = psutil.Process(child.pid)
            before, begun = sum(process.cpu_times()[:2]), time.monotonic()
            time.sleep(PROMETHEUS_S)
            share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begun)
            return {"processor_share": share, "memory_bytes": float(process.memory_info().rss)}
        finally:
            child.terminate()
            child.wait()
            pods.shutdown()


def measure() -> dict[str, Any]:
    """All unit costs; `heartbeat_s` is a replica's for a renewal of its record, without the connection."""
    return {
        "redis": measure_redis(),
        "gateway": [measure_gateway(count) for count in COUNTS],
        "heartbeat_s": _spend(lambda: [build_record(1, 1e9 + n).model_dump_json() for n in range(5000)]) / 5000,
        "prometheus": measure_prometheus(),
    }
