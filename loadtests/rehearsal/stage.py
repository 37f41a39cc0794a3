"""The stage of a rehearsal: Redis, a gateway with keys of two tenants, and replicas in processes of their own.

Replicas are started, stopped and killed as a cluster does it. Knows nothing about traffic.
"""

import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx2
import psutil

from fovea.api.replica import HEARTBEAT_TTL_S
from services.gateway.policy.auth import KeyRing
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings, environment
from tests.harness.waiting import free_port, wait_until

LONGEST_START_S = 600.0
TENANTS = ("hospital", "newsroom")


class Stage:
    """A gateway and `replicas` replicas of each service. Use with `with`.

    Attributes:
        url: The gateway's.
        keys: Tenant → API key.
        running: Replicas by service, oldest first.
    """

    def __init__(self, services: tuple[str, ...], replicas: int) -> None:
        self.keys: dict[str, str] = {}
        self.running: dict[str, list[subprocess.Popen[bytes]]] = {service: [] for service in services}
        self._replicas = replicas
        self._stack = ExitStack()
        self._spent: dict[int, float] = {}
        self.url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fovea-rehearsal-")))
        redis = self._stack.enter_context(RedisServer(Settings(data_dir=folder / "redis", redis_url=None)))
        self._stack.callback(self._stop_all)
        ring = KeyRing(folder / "keys.json")
        self.keys = {tenant: ring.add(tenant, ("infer", "jobs"))[1] for tenant in TENANTS}
        judge = ring.add("judge", ("infer",))[1]
        self._log = self._stack.enter_context((folder / "log").open("wb"))
        self._env = environment(
            FOVEA_REDIS_URL=redis.url,
            FOVEA_DATA_DIR=str(folder),
            FOVEA_AUTH="keys",
            FOVEA_JUDGE_BASE_URL=self.url,
            FOVEA_JUDGE_API_KEY=judge,
            FOVEA_HTTP_PORT=self.url.rpartition(":")[2],
            FOVEA_GRPC_PORT=str(free_port()),
            FOVEA_RATE_LIMIT_RPM="1000000",
            FOVEA_INTRA_OP_THREADS="1",
            FOVEA_LOG_LEVEL="WARNING",
        )
        self.gateway = self._start("services.gateway")
        for service in self.running:
            for _ in range(self._replicas):
                self.add(service)
        for service in self.running:
            self.wait_ready(service, self._replicas)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, service: str) -> None:
        """Start one more replica."""
        self.running[service].append(self._start("shared.serving", service))

    def wait_ready(self, service: str, count: int) -> None:
        """Wait until a service has so many ready replicas."""
        what = f"readiness of {count} replicas of {service}"
        wait_until(lambda: self.count_ready().get(service, 0) >= count, LONGEST_START_S, what, pause_s=0.25)

    def count_ready(self) -> dict[str, int]:
        """Ready replicas by service, as the gateway sees them; empty while it does not answer."""
        try:
            found = httpx2.get(f"{self.url}/readyz", timeout=5).json()["services"]
        except httpx2.HTTPError:
            return {}
        return {service: counts["ready"] for service, counts in found.items()}

    def restart_rolling(self) -> None:
        """Replace each replica: a successor first, then SIGTERM to the old one, which finishes what it has begun."""
        for service, running in self.running.items():
            for old in list(running):
                self.add(service)
                self.wait_ready(service, self._replicas + 1)
                self.cpu_seconds()
                old.send_signal(signal.SIGTERM)
                old.wait(120)
                running.remove(old)

    def kill_node(self) -> None:
        """`kill -9` of one replica of each service, as when a node dies, and others in their places."""
        self.cpu_seconds()
        for running in self.running.values():
            victim = running.pop(0)
            victim.kill()
            victim.wait()
        time.sleep(2 * HEARTBEAT_TTL_S)  # until all have heard of it: a record stands for a lease
        for service in self.running:
            self.add(service)
            self.wait_ready(service, self._replicas)

    def cpu_seconds(self) -> float:
        """CPU time of all processes so far, those that are gone included as of the last call."""
        for process in (self.gateway, *(each for running in self.running.values() for each in running)):
            try:
                times = psutil.Process(process.pid).cpu_times()
            except psutil.Error:
                continue
            self._spent[process.pid] = times.user + times.system
        return sum(self._spent.values())

    def gateway_bytes(self) -> int:
        """Resident memory of the gateway."""
        return int(psutil.Process(self.gateway.pid).memory_info().rss)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, env=self._env, stdout=self._log, stderr=self._log, start_new_session=True)

    def _stop_all(self) -> None:
        for process in (self.gateway, *(each for running in self.running.values() for each in running)):
            process.kill()
            process.wait()
