"""Measure a real Ray cluster of four nodes behind a real gateway under known load, to check the simulation against.

The cluster is that of `loadtests.chaos.cluster`: everything listens on loopback. A request asks the toy model to
sleep, so that the processor, which other work may use, decides little. Also measures the Ray head's processor time.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil

from loadtests.chaos.cluster import SERVICE, Answer, Callers, node_of, serve_config
from services.gateway.policy.auth import KeyRing
from shared.jobs.redis_server import RedisServer
from shared.serving.up import orphan_cleanup
from shared.settings import Settings
from tests.deploy.ray_cluster import HEAD, RayCluster
from tests.harness.waiting import free_port, is_ready, wait_until

NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.6")
SLEEP_S = 0.5
WARM_S = 3.0
SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "one caller": {"callers": {"alice": 1}, "replicas": 1, "seconds": 15},
    "few callers": {"callers": {"alice": 4}, "replicas": 4, "seconds": 25},
    "busy": {"callers": {"alice": 16}, "replicas": 4, "seconds": 25},
    "full": {"callers": {"alice": 80}, "replicas": 4, "seconds": 30},
    "two tenants": {"callers": {"alice": 80, "bob": 2}, "replicas": 4, "seconds": 30},
    "a node is killed": {"callers": {"alice": 16}, "replicas": 4, "seconds": 30, "kill_at": 10.0},
}
"""Callers of each tenant, who send one request after another, and the replicas; `kill_at` is in seconds."""

HEAD_REPLICAS = (1, 4, 8, 12)
"""Replicas at which the head's processor time is measured."""

HEAD_WINDOW_S = 20.0


def describe_times(times: Sequence[float], seconds: float) -> dict[str, float]:
    """Figures of the requests of so many seconds by the time that each took."""
    return {
        "per_second": round(len(times) / seconds, 3),
        "mean_s": round(statistics.fmean(times), 4),
        "p90_s": round(statistics.quantiles(times, n=10)[-1], 4),
        "longest_s": round(max(times), 3),
    }


def summarise(answers: Sequence[Answer], begin: float, end: float) -> dict[str, Any]:
    """Figures of the requests that were answered between two times, by tenant and together."""
    ended = [one for one in answers if begin <= one.sent + one.seconds < end and one.status == "200"]
    tenants = {
        tenant: describe_times([one.seconds for one in ended if one.tenant == tenant], end - begin)
        for tenant in sorted({one.tenant for one in answers})
    }
    return {
        "tenants": tenants,
        "together": round(statistics.fmean(one.together for one in ended), 3),
        "lost": sum(one.status != "200" for one in answers),
    }


def read_queue(metrics: str) -> tuple[float, float]:
    """Seconds that requests waited for their turn at the gateway so far, and how many did."""
    text = httpx2.get(metrics).text
    values = [
        re.search(
            rf'^fovea_request_queue_time_seconds_{end}{{[^}}]*service="gateway"[^}}]*}} (\S+)', text, re.MULTILINE
        )
        for end in ("sum", "count")
    ]
    waited, count = (float(value[1]) if value else 0.0 for value in values)
    return waited, count


def measure_scenario(
    cluster: RayCluster, place: tuple[str, str], keys: Mapping[str, str], scenario: Mapping[str, Any]
) -> dict[str, Any]:
    """One scenario on the cluster."""
    if len(cluster.list_replicas(SERVICE)) != scenario["replicas"]:
        cluster.submit(serve_config(scenario["replicas"], scenario["replicas"]))
        cluster.wait_replicas(SERVICE, scenario["replicas"], 240)
    time.sleep(2)  # the gateway sees them
    url, metrics = place
    with Callers(url, scenario["callers"], SLEEP_S, keys) as callers:
        time.sleep(WARM_S)
        begin, (waited, asked) = time.monotonic(), read_queue(metrics)
        if kill_at := scenario.get("kill_at"):
            time.sleep(kill_at)
            cluster.signal(node_of(cluster, cluster.list_replicas(SERVICE)[0].pid), signal.SIGKILL)
        time.sleep(scenario["seconds"] - (kill_at or 0))
        end, (waited_then, asked_then) = time.monotonic(), read_queue(metrics)
    queue_s = (waited_then - waited) / max(asked_then - asked, 1)
    return {**summarise(callers.answers, begin, end), "queue_s": round(queue_s, 4)}


def processor_seconds(leader: int) -> float:
    """Processor time of all processes of a session so far."""
    total = 0.0
    for pid in orphan_cleanup.session_members(leader):
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def measure_head(cluster: RayCluster) -> list[dict[str, float]]:
    """Processor time that the head takes in a second, by the number of replicas; nobody sends requests.

    Ends early where so many replicas do not come up here.
    """
    found = []
    for count in HEAD_REPLICAS:
        cluster.submit(serve_config(count, count, max_per_node=-(-HEAD_REPLICAS[-1] // len(NODES))))
        try:
            cluster.wait_replicas(SERVICE, count, 150)
        except AssertionError:
            break
        time.sleep(10)
        leader = cluster.sessions[HEAD].pid
        began, spent = time.monotonic(), processor_seconds(leader)
        time.sleep(HEAD_WINDOW_S)
        share = (processor_seconds(leader) - spent) / (time.monotonic() - began)
        found.append({"replicas": count, "processor_share": round(share, 4)})
        print(json.dumps(found[-1]), flush=True)
    return found


def measure() -> dict[str, Any]:
    """Everything, on one cluster."""
    with tempfile.TemporaryDirectory() as name, RedisServer(Settings(data_dir=Path(name), redis_url=None)) as server:
        ring, metrics_port = KeyRing(Path(name) / "keys.json"), free_port()
        keys = {tenant: ring.add(tenant, ("infer",), rate_per_minute=1_000_000)[1] for tenant in ("alice", "bob")}
        secret = secrets.token_hex(16)
        cluster = RayCluster(Path(name), server.url, FOVEA_SHUTDOWN_GRACE_S="2", FOVEA_REPLICA_SECRET=secret)
        try:
            cluster.start_head()
            for node in NODES:
                cluster.add_node(node)
            cluster.submit(serve_config(1, 1))
            cluster.wait_replicas(SERVICE, 1, 240)
            url = cluster.start_gateway(
                FOVEA_AUTH="keys", FOVEA_KEYS_FILE=str(Path(name) / "keys.json"), FOVEA_METRICS_PORT=str(metrics_port)
            )
            wait_until(lambda: is_ready(url), 60, "the gateway is ready")
            slots = cluster.list_replicas(SERVICE)[0].slots
            runs = {}
            for title, scenario in SCENARIOS.items():
                place = (url, f"http://127.0.0.1:{metrics_port}/metrics")
                runs[title] = measure_scenario(cluster, place, keys, scenario)
                print(json.dumps({title: runs[title]}), flush=True)
            head = measure_head(cluster)
        finally:
            cluster.stop()
    return {"head": head, "slots": slots, "sleep_s": SLEEP_S, "load_average": os.getloadavg()[1], "runs": runs}
