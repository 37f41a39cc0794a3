"""A gateway and one replica of each service as plain processes: the product without Ray, Redis and jobs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loadtests.bench.contender import run_python
from tests.harness.waiting import free_port, is_ready, wait_until

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
        log = stack.enter_context((folder / "log.txt").open("ab")).fileno()
        for service, port in ports.items():
            words = ["-m", "shared.serving", service, "--http-port", str(port), "--grpc-port", str(free_port())]
            stack.enter_context(run_python(words, env, log))
        stack.enter_context(run_python(["-m", "services.gateway"], {**env, **gateway}, log))
        url = f"http://127.0.0.1:{front}"
        wait_until(lambda: is_ready(url), START_S, "the gateway is ready", pause_s=0.5)
        yield url
