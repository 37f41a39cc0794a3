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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

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


class Answer(NamedTuple):
    """One request: whose it was, when it was sent, how long it took, its status or its error, the size of its batch."""

    tenant: str
    sent: float
    seconds: float
    status: str
    together: int


class Callers:
    """Threads that send requests through the gateway one after another, until the block ends.

    A request takes the replica `sleep_s`; callers are so many of each tenant, and keys those of tenants that have one.
    """

    def __init__(
        self, url: str, callers: Mapping[str, int], sleep_s: float, keys: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.answers: list[Answer] = []
        self._url, self._body, self._keys = url, {"text": "hello", "sleep": sleep_s}, keys
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(name,)) for name, count in callers.items() for _ in range(count)
        ]

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
        seconds = [answer.seconds for answer in self.answers]
        return {
            "requests": len(seconds),
            "lost": sum(answer.status != "200" for answer in self.answers),
            "median_s": round(statistics.median(seconds), 3) if seconds else None,
            "longest_s": round(max(seconds, default=0), 2),
        }

    def _call(self, tenant: str) -> None:
        headers = {"authorization": f"Bearer {self._keys[tenant]}"} if tenant in self._keys else {}
        with httpx2.Client(base_url=self._url, timeout=120, headers=headers) as client:
            while not self._over.is_set():
                sent, together = time.monotonic(), 0
                try:
                    answer = client.post("/v1/echo", json=self._body)
                    status = str(answer.status_code)
                    together = answer.json().get("together", 0) if answer.is_success else 0
                except httpx2.HTTPError as error:
                    status = type(error).__name__
                self.answers.append(Answer(tenant, sent, time.monotonic() - sent, status, together))


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
    with Callers(url, {"more": 12}, 0.5) as more:
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
    with Callers(url, {"load": 4}, 0.05) as load:
        time.sleep(2)
        found = SCENARIOS[name](cluster, url)
        time.sleep(2)
    statuses = Counter(answer.status for answer in load.answers)
    return {"scenario": name, **load.figures(), **found, "statuses": dict(statuses)}


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
