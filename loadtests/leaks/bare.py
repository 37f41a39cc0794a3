"""A gateway and one replica of each service as plain processes: the product without Ray, Redis and jobs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from loadtests.bench.contender import free_port

START_S = 600.0


@contextmanager
def bare_product(folder: Path, services: Sequence[str]) -> Iterator[str]:
    """Start them; the gateway's URL once everything is ready."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FOVEA_")}
    env |= {"FOVEA_DATA_DIR": str(folder / "data"), "FOVEA_LOG_LEVEL": "WARNING"}
    ports = {service: free_port() for service in services}
    front = free_port()
    upstreams = ",".join(f"{service}=http://127.0.0.1:{port}" for service, port in ports.items())
    gateway = {"FOVEA_STATIC_UPSTREAMS": upstreams, "FOVEA_HTTP_PORT": str(front), "FOVEA_GRPC_PORT": "0"}
    with ExitStack() as stack:
        for service, port in ports.items():
            words = ["shared.serving", service, "--http-port", str(port), "--grpc-port", str(free_port())]
            stack.enter_context(_process(folder, words, env))
        stack.enter_context(_process(folder, ["services.gateway"], {**env, **gateway}))
        url = f"http://127.0.0.1:{front}"
        _wait_ready(url)
        yield url


@contextmanager
def _process(folder: Path, words: Sequence[str], env: dict[str, str]) -> Iterator[None]:
    with (folder / "log.txt").open("ab") as log:
        made = subprocess.Popen([sys.executable, "-m", *words], env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        made.terminate()
        try:
            made.wait(20)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()


def _wait_ready(url: str) -> None:
    """Wait until the gateway says that all is ready.

    Raises:
        TimeoutError: It does not in time.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            if httpx2.get(f"{url}/readyz", timeout=5).status_code == httpx2.codes.OK:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    message = f"not ready within {START_S:.0f} s"
    raise TimeoutError(message)
