"""Start of an image: seconds from `podman run` to the first answer, through a gateway.

    python -m loadtests.image_start SERVICE FLAVOUR [--starts 3] [--cold] [--most 10]

The other part, a gateway or, for the gateway's image, a service, runs from this environment and is up before the clock
runs. An image for GPUs gets all GPUs; on a machine without one it must say so, and keep running. Needs podman,
and for `--cold` root.
"""

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from shared.serving.device_placement import list_gpus
from tests.deploy.one_request import main as ask_once
from tests.harness.waiting import free_port, wait_until

_ROOT = Path(__file__).parents[1]
_BEHIND_GATEWAY = "medical-seg"
"""The service that answers behind the image of a gateway."""

_WITH_TRITON = ("llm-longctx", "interpretability", "relevance-judge")

_COMPILE = """
import pathlib, subprocess, sysconfig, triton
place = pathlib.Path(triton.__file__).parent / "backends/nvidia"
paths = ["-I", place / "include", "-I", sysconfig.get_path("include")]
subprocess.run(["gcc", "-fsyntax-only", place / "driver.c", *paths], check=True)
"""
"""Compiles what Triton compiles when its first kernel starts."""

_LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
"""Limits that a container takes over: podman would ask for more, which not every machine allows."""


@dataclass(frozen=True)
class Start:
    """Seconds from a container's start to its first answer, and processor seconds that it used until then."""

    seconds: float
    processor_s: float


@dataclass(frozen=True)
class Image:
    """The image of a service, as `deploy/images.sh` names it."""

    service: str
    flavour: str

    @property
    def name(self) -> str:
        """Its name in podman's storage."""
        return f"localhost/fovea-{self.service}:{self.flavour}"

    @property
    def size(self) -> int:
        """Its bytes; 0 where podman doesn't have it."""
        found = _podman("image", "inspect", "--format", "{{.Size}}", self.name)
        return int(found.stdout) if found.returncode == 0 else 0

    def measure(self, starts: int, *, cold: bool) -> list[Start]:
        """Start it so often, each time until it has answered its own example.

        Args:
            starts: How often.
            cold: Whether the page cache is dropped before each start, so that all files come from the disk.

        Raises:
            SystemExit: It gave no answer.
        """
        front, http, grpc = free_port(), free_port(), free_port()
        upstream = _BEHIND_GATEWAY if self.service == "gateway" else self.service
        addresses = f"{upstream}=http://127.0.0.1:{http}|grpc://127.0.0.1:{grpc}"
        gateway = {"FOVEA_HTTP_PORT": f"{front}", "FOVEA_GRPC_PORT": "0", "FOVEA_STATIC_UPSTREAMS": addresses}
        serve = ["-m", "shared.serving", upstream, "--http-port", f"{http}", "--grpc-port", f"{grpc}"]
        if self.service == "gateway":
            gateway |= {"FOVEA_HOST": "127.0.0.1", "FOVEA_AUTH": "insecure-local"}
            command, other = [*_options(gateway), self.name], _process(serve, {}, f"http://127.0.0.1:{http}/readyz")
        else:
            command = [*_options({"FOVEA_REPLICA_HOST": "127.0.0.1"}), self.name, "python", *serve]
            other = _process(["-m", "services.gateway"], gateway, f"http://127.0.0.1:{front}/livez")
        with other:
            return [self._time_one(command, f"http://127.0.0.1:{front}", upstream, cold=cold) for _ in range(starts)]

    def check_refusal(self) -> str:
        """Start it where no GPU is; return what `/readyz` says of each model.

        Raises:
            SystemExit: It ended, said nothing that helps, or its log has a traceback.
        """
        http = free_port()
        serve = ["-m", "shared.serving", self.service, "--http-port", f"{http}", "--grpc-port", "0"]
        with self._container([*_options({"FOVEA_REPLICA_HOST": "127.0.0.1"}), self.name, "python", *serve]) as read_log:
            try:
                said = wait_until(lambda: _find_refusal(f"http://127.0.0.1:{http}/readyz"), 120)
            except AssertionError:
                sys.exit(f"{self.name} does not say that there is no GPU:\n{read_log()}")
            if "no CUDA device" not in read_log() or "Traceback" in read_log():
                sys.exit(f"The log of {self.name} does not say that there is no GPU:\n{read_log()}")
            if self.service in _WITH_TRITON:
                done = _podman("exec", self._container_name, "python", "-c", _COMPILE)
                if done.returncode:
                    sys.exit(f"Triton can't compile its driver in {self.name}:\n{done.stdout}{done.stderr}")
        return said

    def _time_one(self, command: list[str], url: str, upstream: str, *, cold: bool) -> Start:
        if cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        begun = time.monotonic()
        with self._container(command) as read_log:
            if ask_once(url, upstream):
                sys.exit(f"{self.name} gave no answer.\n{read_log()}")
            took = time.monotonic() - begun
            pid = _podman("inspect", "--format", "{{.State.Pid}}", self._container_name).stdout
            used = psutil.Process(int(pid)).cpu_times()
            return Start(took, used.user + used.system + used.children_user + used.children_system)

    @property
    def _container_name(self) -> str:
        return f"fovea-{self.service}-{os.getpid()}"

    @contextlib.contextmanager
    def _container(self, command: list[str]) -> Iterator[Callable[[], str]]:
        """Run a container; yields what reads its log."""
        name = self._container_name
        how = ["--detach", f"--name={name}", "--network=host", *(f"--ulimit={k}={_limit(k)}" for k in _LIMITS)]
        gpus = ["--device=nvidia.com/gpu=all"] if self.flavour == "gpu" and list_gpus() else []
        try:
            ran = _podman("--runtime=runc", "run", *how, *gpus, *command)
            if ran.returncode:
                sys.exit(f"{self.name} can't be run: {ran.stderr}")

            def read_log() -> str:
                log = _podman("logs", name)
                return (log.stdout + log.stderr)[-4000:]

            yield read_log
        finally:
            _podman("rm", "--force", "--time=3", name)


@contextlib.contextmanager
def _process(words: list[str], env: dict[str, str], url: str) -> Iterator[None]:
    """Run a process of this environment, which is up once a URL answers with a success."""
    with tempfile.TemporaryDirectory(prefix="fovea-image-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            other = subprocess.Popen(
                [sys.executable, *words], cwd=_ROOT, env={**os.environ, "FOVEA_DATA_DIR": folder, **env},
                stdout=out, stderr=out,
            )  # fmt: skip
        try:
            wait_until(lambda: (found := _get(url)) and found.is_success, 180, f"`{' '.join(words)}`")
            yield
        except AssertionError as error:
            sys.exit(f"{error}\n{log.read_text('utf8', 'replace')[-2000:]}")
        finally:
            other.terminate()
            other.wait(60)


def _options(env: dict[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in env.items()]


def _limit(kind: str) -> str:
    return ":".join(str(number) for number in resource.getrlimit(_LIMITS[kind]))


def _get(url: str) -> httpx2.Response | None:
    """An answer, whatever its status; None where nobody listens."""
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(url, timeout=10)
    return None


def _find_refusal(url: str) -> str:
    answer = _get(url)
    return answer.text if answer and "no CUDA device" in answer.text else ""


def _podman(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *words], check=False, capture_output=True, text=True)


def main() -> int:
    """Try one image; 1 where its median start takes longer than `--most` seconds."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.image_start", description=__doc__)
    parser.add_argument("service")
    parser.add_argument("flavour", choices=("cpu", "gpu", "onnx"))
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each start")
    parser.add_argument("--most", type=float, default=float("inf"), help="seconds that the median may take")
    asked = parser.parse_args()
    image = Image(asked.service, asked.flavour)
    if asked.flavour == "gpu" and asked.service != "gateway" and not list_gpus():
        print(f"This machine has no GPU, and the image says so: {image.check_refusal()}")
        return 0
    found = image.measure(asked.starts, cold=asked.cold)
    for one in found:
        print(f"First answer {one.seconds:.1f} s after the start ({one.processor_s:.1f} s of processor time).")
    return int(statistics.median(one.seconds for one in found) > asked.most)


if __name__ == "__main__":
    sys.exit(main())
