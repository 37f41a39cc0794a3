"""A real Ray cluster on loopback addresses, started as KubeRay starts pods: a head without CPUs, and nodes of one CPU.

Also what stands next to it in a cluster: a gateway in a process of its own. Everything ends with `stop`.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import redis

from fovea.api.replica import HEARTBEAT_TTL_S, ReplicaRecord, replicas_key
from shared.serving.up import orphan_cleanup
from shared.settings import environment as process_environment
from tests.harness.redis_servers import start_redis
from tests.harness.waiting import free_port, wait_until

LOOPBACK = "127.0.0.1"
HEAD = "127.0.0.4"
"""Ray takes 127.0.0.1 for the address of the machine; any other address it leaves as it is."""

TOKEN = "a-token-of-this-test-and-no-other"  # at least 16 characters, or Ray refuses it
TERMINAL = frozenset({"RUNNING", "DEPLOY_FAILED", "UNHEALTHY"})


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


class RayCluster:
    """Head and nodes, each a session of processes with a data folder of its own, as each pod has."""

    def __init__(self, folder: pathlib.Path, redis_url: str, **settings: str) -> None:
        self.gcs, self.dashboard = free_port(), free_port()
        self.sessions: dict[str, subprocess.Popen[bytes]] = {}
        self._nodes: set[str] = set()
        self._folder, self._redis_url, self._settings = folder, redis_url, settings
        # Ray's sockets lie in its folder, and the path of a socket has 107 bytes at most.
        self._ray = pathlib.Path(tempfile.mkdtemp(prefix="r"))
        self._turn = (pathlib.Path(tempfile.gettempdir()) / "fovea-ray-cluster.lock").open("w")
        fcntl.flock(self._turn, fcntl.LOCK_EX)  # clusters share loopback addresses and the ports of Ray's agents

    def start_head(self) -> None:
        """Start the head, anew where it was killed: with its state in Redis it takes up where the old one ended."""
        place = urlsplit(self._redis_url)
        (self._ray / "ray_current_cluster").unlink(missing_ok=True)  # a new pod's folder is empty
        self._start(
            HEAD, "--head", "--num-cpus=0", f"--port={self.gcs}", "--include-dashboard=true",
            f"--dashboard-port={self.dashboard}", f"--temp-dir={self._ray}",
            f"--redis-password={place.password or ''}", RAY_REDIS_ADDRESS=f"redis://{place.hostname}:{place.port}",
            RAY_external_storage_namespace="demo",
        )  # fmt: skip
        wait_until(lambda: self._is_running(HEAD) and is_listening(self.gcs, HEAD), 240, "the head's GCS listens")

    def add_node(self, node: str) -> None:
        self._nodes.add(node)
        patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}  # of KubeRay where the head's state is in Redis
        self._start(node, f"--address={HEAD}:{self.gcs}", "--num-cpus=1", **patience)

    def submit(self, *configs: dict[str, Any]) -> None:
        """PUT one Serve config made of the applications of all, as the operator does."""
        whole = {**configs[0], "applications": [a for config in configs for a in config["applications"]]}

        def put() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                answer = self._request("PUT", whole)
                assert answer.status_code in {200, 500, 502, 503}, answer.text
                return answer.status_code == 200
            return False

        wait_until(put, 240, "the dashboard takes the config")

    def wait_running(self, seconds: float) -> None:
        """Wait until all applications run; if one fails, the message is Ray's."""

        def settled() -> dict[str, Any]:
            self.restart_nodes()
            found: dict[str, Any] = {}
            with contextlib.suppress(httpx2.TransportError, KeyError, ValueError):  # a head that is just starting
                found = self._request("GET").json()["applications"]
            return found if found and all(app["status"] in TERMINAL for app in found.values()) else {}

        applications = wait_until(settled, seconds, "the applications run")
        failed = {name: app["message"] for name, app in applications.items() if app["status"] != "RUNNING"}
        assert not failed, failed

    def wait_replicas(self, service: str, count: int, seconds: float) -> list[ReplicaRecord]:

        def settled() -> list[ReplicaRecord]:
            self.restart_nodes()
            found = self.list_replicas(service)
            return found if len(found) == count else []

        return wait_until(settled, seconds, f"{count} replicas of {service} are ready")

    def list_replicas(self, service: str) -> list[ReplicaRecord]:
        found = self.list_records(service)
        return [replica for replica in found if replica.ready and time.time() - replica.seen < HEARTBEAT_TTL_S]

    def list_records(self, service: str) -> list[ReplicaRecord]:
        with redis.Redis.from_url(self._redis_url) as link:
            return [ReplicaRecord.model_validate_json(value) for value in link.hvals(replicas_key(service))]

    def signal(self, node: str, number: signal.Signals) -> None:
        """Send a signal to the first process of a node, as the kubelet does; SIGKILL goes to all of the node."""
        self._nodes.discard(node)  # it stays away until it is added again
        leader = self.sessions[node].pid
        for pid in orphan_cleanup.session_members(leader) if number is signal.SIGKILL else [leader]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def describe(self) -> str:
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text('utf8', 'replace')[-1500:]}" for log in logs)

    def stop(self) -> None:
        orphan_cleanup.end_sessions([process.pid for process in self.sessions.values()], 1)
        for process in self.sessions.values():
            process.wait()
        shutil.rmtree(self._ray, ignore_errors=True)
        self._turn.close()

    def start_gateway(self, **settings: str) -> str:
        """Start a gateway that knows the cluster's replicas through Redis; returns its URL."""
        http = free_port()
        env = self.environment("gateway", FOVEA_HTTP_PORT=str(http), FOVEA_GRPC_PORT="0", **settings)
        self._spawn(f"gateway-{http}", [sys.executable, "-m", "services.gateway"], env)
        wait_until(lambda: is_listening(http), 60, "the gateway listens")
        return f"http://{LOOPBACK}:{http}"

    def data_dir(self, node: str) -> pathlib.Path:
        return self._folder / node

    def restart_nodes(self) -> None:
        """Start nodes again that ended by themselves, as the kubelet does: Ray gives a slow start up after 30 s."""
        for node in [name for name in self._nodes if self.sessions[name].poll() is not None]:
            self.add_node(node)

    def _is_running(self, name: str) -> bool:
        ended = self.sessions[name].poll()
        assert ended is None, f"{name} ended with {ended}:\n{self.describe()}"
        return True

    def _request(self, method: str, body: Any = None) -> httpx2.Response:
        url = f"http://{LOOPBACK}:{self.dashboard}/api/serve/applications/"
        return httpx2.request(method, url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)

    def _start(self, node: str, *flags: str, **variables: str) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={node}"]
        self._spawn(node, [*ray, "--object-store-memory=80000000", *flags], self.environment(node, **variables))

    def environment(self, node: str, **variables: str) -> dict[str, str]:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # as KubeRay sets it for `authOptions`
        env = process_environment(
            FOVEA_REDIS_URL=self._redis_url, FOVEA_DATA_DIR=str(self.data_dir(node)), RAY_USAGE_STATS_ENABLED="0",
            PYTHONPATH=os.pathsep.join(sys.path), **token, **self._settings, **variables,
        )  # fmt: skip
        env.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)  # our Ray room sets it: all nodes would be 127.0.0.1
        return env

    def _spawn(self, name: str, command: list[str], env: dict[str, str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self.sessions[name] = subprocess.Popen(
                command, env=env, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )


@contextlib.contextmanager
def run_cluster(folders, *nodes: str, **settings: str) -> Iterator[RayCluster]:
    """A head and nodes at loopback addresses, with a Redis of their own and variables of the environment for all.

    Their logs are printed where a test fails.
    """
    with start_redis(folders.mktemp("redis")) as server:
        made = RayCluster(folders.mktemp("ray"), server.url, FOVEA_SHUTDOWN_GRACE_S="2", **settings)
        try:
            made.start_head()
            for node in nodes:
                made.add_node(node)
            yield made
        except AssertionError:
            print(made.describe())
            raise
        finally:
            made.stop()
