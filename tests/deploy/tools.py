"""Programs that tests of `deploy` run: its scripts, helm from PATH or from a wheel (unpacked once), and processes."""

import contextlib
import importlib.util
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence

import pytest

from tests.harness.redis_servers import start_redis
from tests.harness.waiting import wait_until

ROOT = pathlib.Path(__file__).parents[2]


def run(*command, check=False, **more):
    return subprocess.run(command, capture_output=True, text=True, check=check, **more)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"deploy/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def helm() -> str | None:
    if found := shutil.which("helm"):
        return found
    if (target := pathlib.Path(sys.prefix) / "bin" / "helm").exists():
        return str(target)
    if (packed := _layer()) is None:
        return None
    with zipfile.ZipFile(io.BytesIO(packed)) as layer:
        target.write_bytes(layer.read("helm/helm"))
    target.chmod(0o755)
    return str(target)


def _layer() -> bytes | None:
    spec = importlib.util.find_spec("aws_cdk")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for archive in pathlib.Path(place).glob("lambda_layer_kubectl_*/_jsii/*.tgz"):
            with tarfile.open(archive) as tar:
                member = tar.extractfile("package/lib/layer.zip")
                return member.read() if member else None
    return None


needs_helm = pytest.mark.skipif(helm() is None, reason="no helm: neither on PATH nor in the carrier wheel")


@contextlib.contextmanager
def run_platform(folders, make):
    """Start a platform, `make` of a folder and a Redis, and give it once it `is_ready`."""
    with start_redis(folders.mktemp("redis")) as server:
        made = make(folders.mktemp("platform"), server.url)
        try:
            wait_until(made.is_ready, 120, "the gateways see their services")
            yield made
        finally:
            made.processes.stop()


class Processes:
    """Starts processes that write into files of one folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        with (self._folder / f"{len(self._started)}.log").open("wb") as log:
            self._started.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))

    def stop(self) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
