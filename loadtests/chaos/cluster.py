"""A Ray cluster under load whose nodes, replicas and head are killed, stopped or hung: what is lost, how long it lasts.

`python -m loadtests.chaos.cluster`. The cluster is started and told what to run as KubeRay does it with the chart
(`tests/deploy/ray_cluster.py`): a head, nodes of one replica each, a gateway, all on loopback addresses.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx2

from shared.jobs.redis_server import RedisServer
from shared.settings import Settings
from tests.deploy.ray_cluster import LOOPBACK, RayCluster
from tests.harness.waiting import is_ready, wait_until

NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.5")
SERVICE = "toy"
APP = "shared.serving.tests.toy_app:app"


def serve_config(low: int, high: int, **args: Any) -> dict[str, Any]:
    """The chart's Serve config for a light app."""
    placement = {"service": SERVICE, "app": APP, "min_replicas": low, "max_replicas": high, "max_per_node": 1, **args}
    application = {
        "name": SERVICE, "route_prefix": None, "import_path": "shared.serving.ray:application", "args": placement,
    }  # fmt: skip
    return {"proxy_location": "Disabled", "applications": [application]}


class Load:
    """Callers that send requests through the gateway one after another, until the block ends."""

    def __init__(self, url: str, callers: int, sleep_s: float = 0.05) -> None:
        """Prepare `callers` threads; a request takes the replica `sleep_s`."""
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._url, self._body = url, {"text": "hello", "sleep": sleep_s}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def figures(self) -> dict[str, Any]:
        """Requests, those that were not answered with 200, median and longest time in seconds."""
        lost = sum(count for status, count in self.statuses.items() if status != "200")
        median = round(statistics.median(self.seconds), 3) if self.seconds else None
        longest = round(max(self.seconds, default=0), 2)
        return {"requests": self.statuses.total(), "lost": lost, "median_s": median, "longest_s": longest}

    def _call(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=120) as client:
            while not self._over.is_set():
                began = time.perf_counter()
                try:
                    status = str(client.post("/v1/echo", json=self._body).status_code)
                except httpx2.HTTPError as error:
                    status = type(error).__name__
                self.statuses[status] += 1
                self.seconds.append(time.perf_counter() - began)


def place(cluster: RayCluster, count: int) -> None:
    """Let the cluster run `count` replicas, each on a node of its own."""
    cluster.submit(serve_config(count, count))
    cluster.wait_replicas(SERVICE, count, 240)


def node_of(cluster: RayCluster, pid: int) -> str:
    """The node whose session a process belongs to."""
    session = os.getsid(pid)
    return next(node for node, process in cluster.sessions.items() if process.pid == session)


def kill_node(cluster: RayCluster, _url: str) -> dict[str, Any]:
    """`kill -9` of everything on a node with a replica."""
    victim = cluster.list_replicas(SERVICE)[0]
    node = node_of(cluster, victim.pid)
    began = time.monotonic()
    cluster.signal(node, signal.SIGKILL)
    _wait_for_successor(cluster, victim.id)
    healed_s = time.monotonic() - began
    cluster.add_node(node)
    return {"healed_s": round(healed_s, 1)}


def stop_node(cluster: RayCluster, _url: str) -> dict[str, Any]:
    """The kubelet's way with a pod: the `preStop` hook, then SIGTERM to the first process."""
    victim = cluster.list_replicas(SERVICE)[0]
    node = node_of(cluster, victim.pid)
    began = time.monotonic()
    hook = subprocess.run([sys.executable, "-m", "shared.serving.drain"], env=cluster.environment(node), check=False)
    drained_s = time.monotonic() - began
    is_withdrawn = victim.id not in {replica.id for replica in cluster.list_records(SERVICE)}
    cluster.signal(node, signal.SIGTERM)
    cluster.sessions[node].wait(90)
    stopped_s = time.monotonic() - began
    _wait_for_successor(cluster, victim.id)
    cluster.add_node(node)
    return {
        "hook": hook.returncode,
        "withdrawn": is_withdrawn,
        "drained_s": round(drained_s, 1),
        "stopped_s": round(stopped_s, 1),
    }


def kill_head(cluster: RayCluster, _url: str, away_s: float = 75.0) -> dict[str, Any]:
    """`kill -9` of the head, which comes back only after replicas without its state in Redis would have ended."""
    before = {replica.id for replica in cluster.list_replicas(SERVICE)}
    cluster.signal("127.0.0.4", signal.SIGKILL)
    time.sleep(away_s)
    while_away = {replica.id for replica in cluster.list_replicas(SERVICE)}
    cluster.start_head()
    cluster.wait_running(180)
    after = {replica.id for replica in cluster.list_replicas(SERVICE)}
    return {"away_s": away_s, "kept_while_away": len(before & while_away), "kept_after": len(before & after)}


def hang_replica(cluster: RayCluster, _url: str) -> dict[str, Any]:
    """SIGSTOP of a replica's process: Ray replaces it, and nobody waits for it."""
    victim = cluster.list_replicas(SERVICE)[0]
    began = time.monotonic()
    os.kill(victim.pid, signal.SIGSTOP)
    _wait_for_successor(cluster, victim.id)
    return {"replaced_s": round(time.monotonic() - began, 1)}


def scale_up(cluster: RayCluster, url: str) -> dict[str, Any]:
    """Three times the requests in flight that one replica should have: one more replica per node, seconds to ready."""
    cluster.submit(serve_config(1, 3, busy_per_replica=4, upscale_delay_s=2))
    cluster.wait_replicas(SERVICE, 1, 120)
    with Load(url, 12, 0.5) as more:
        began = time.monotonic()
        cluster.wait_replicas(SERVICE, 3, 300)
        ready_s = time.monotonic() - began
    nodes = {node_of(cluster, replica.pid) for replica in cluster.list_replicas(SERVICE)}
    return {"ready_s": round(ready_s, 1), "nodes": len(nodes), "load": more.figures()}


SCENARIOS: dict[str, Callable[[RayCluster, str], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (kill_node, stop_node, kill_head, hang_replica, scale_up)
}


def run(cluster: RayCluster, url: str, name: str) -> dict[str, Any]:
    """One scenario under load from four callers; what happened, in figures."""
    with Load(url, 4) as load:
        time.sleep(2)
        found = SCENARIOS[name](cluster, url)
        time.sleep(2)
    return {"scenario": name, **load.figures(), **found, "statuses": dict(load.statuses)}


def _wait_for_successor(cluster: RayCluster, gone: str) -> None:
    def is_replaced() -> bool:
        cluster.restart_nodes()
        ids = {replica.id for replica in cluster.list_replicas(SERVICE)}
        return gone not in ids and len(ids) == 2

    wait_until(is_replaced, 180, "another replica takes its place")


def main(names: tuple[str, ...] = tuple(SCENARIOS)) -> int:
    """Run the scenarios on one cluster; 1 if a request was lost."""
    lost = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Settings(data_dir=Path(folder), redis_url=None)) as server,
    ):
        cluster = RayCluster(Path(folder), server.url, FOVEA_SHUTDOWN_GRACE_S="10")
        try:
            cluster.start_head()
            for node in NODES:
                cluster.add_node(node)
            place(cluster, 2)
            url = cluster.start_gateway()
            wait_until(lambda: is_ready(url), 30, f"the gateway on {LOOPBACK} is ready")
            for name in names:
                figures = run(cluster, url, name)
                print(json.dumps(figures), flush=True)
                lost += figures["lost"]
        finally:
            cluster.stop()
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or tuple(SCENARIOS)))
