"""A real Triton of the wheel `nvidia-pytriton`, which brings the server but no backend for ONNX graphs.

The backend `onnxruntime` that repositories name is a Python one here, run by the server's own Python backend; all else,
configurations, batching, warm-up, labels, protocols and shared memory, is Triton's.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx2

from tests.harness.waiting import free_port, wait_until

START_S = 120

BACKEND = '''"""Runs a model's ONNX graph."""

import json
import sys
from pathlib import Path

sys.path[:0] = {path!r}

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        graph = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = onnxruntime.InferenceSession(str(graph))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {{one.name(): np.from_dlpack(one) for one in request.inputs()}}
        names = list(request.requested_output_names())
        found = self.session.run(names, feeds)
        arrays = map(np.ascontiguousarray, found)
        return triton.InferenceResponse(list(map(triton.Tensor.from_dlpack, names, arrays)))
'''


def find_triton() -> Path | None:
    """Where the wheel's packages lie; None where it is not installed, or brings nothing for this Python."""
    try:
        place = Path(str(metadata.distribution("nvidia-pytriton").locate_file("")))
    except metadata.PackageNotFoundError:
        return None
    return place if find_stub(place).exists() else None


def find_stub(place: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return place / "pytriton/tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"


@contextlib.contextmanager
def run_triton(place: Path, repository: Path, work: Path) -> Iterator[tuple[str, str]]:
    """A server of a model repository: its addresses for HTTP and gRPC."""
    backends = work / "backends"
    shutil.copytree(place / "pytriton/tritonserver/backends/python", backends / "python")
    runner = Path(shutil.copy(find_stub(place), backends / "python"))
    runner.chmod(0o755)
    (backends / "onnxruntime").mkdir()
    path = [one for one in sys.path if one]
    (backends / "onnxruntime" / "model.py").write_text(BACKEND.format(path=path), "utf-8")
    server = work / "tritonserver"
    shutil.copy(place / "pytriton/tritonserver/bin/tritonserver", server)
    server.chmod(0o755)
    before = os.environ.get("LD_LIBRARY_PATH", "")
    libraries = [str(place / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR"), before]
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [server, f"--model-repository={repository}", f"--backend-directory={backends}", "--allow-metrics=false"]
    for name, address in (("http", http), ("grpc", grpc)):
        host, _, port = address.partition(":")
        command += [f"--{name}-address={host}", f"--{name}-port={port}"]
    log = (work / "triton.log").open("w+", encoding="utf-8")
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_ready(process, http, work / "triton.log")
        yield http, grpc
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def wait_ready(process: subprocess.Popen[bytes], http: str, log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text("utf-8")[-3000:]
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"http://{http}/v2/health/ready", timeout=2).status_code == 200
        return False

    wait_until(answers, START_S, "Triton's readiness")
