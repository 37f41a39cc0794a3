"""A real Triton loads the repositories that are written, and the triton engine gets from it what ONNX Runtime finds.

The wheel `nvidia-pytriton` brings the server but no backend for ONNX graphs. The backend `onnxruntime` that
repositories name is a Python one here, run by the server's own Python backend; all else, configurations, batching,
warm-up, labels, protocols and shared memory, is Triton's.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import metadata
from pathlib import Path

import httpx2
import numpy as np
import onnxruntime
import pytest
from torch import Tensor, nn

from fovea.api.tensors import TensorSpec
from fovea.errors import BadInput, NotFound
from shared.engines.triton import TritonEngine
from shared.export.artifacts import ExportedForms
from shared.export.tests.test_triton_repository import LABELS, forms
from shared.export.triton_repository import TritonOptions, write_model
from shared.registry.weights import Manifest, NetworkSpec, Weights
from tests.harness.waiting import free_port, wait_until

PATH = [one for one in sys.path if one]
"""Where Triton's own Python finds numpy and ONNX Runtime."""

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
    Path(shutil.copy(find_stub(place), backends / "python")).chmod(0o755)
    (backends / "onnxruntime").mkdir()
    (backends / "onnxruntime" / "model.py").write_text(BACKEND.format(path=PATH), "utf-8")
    server = Path(shutil.copy(place / "pytriton/tritonserver/bin/tritonserver", work))
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

    def answers() -> bool:
        assert process.poll() is None, (work / "triton.log").read_text("utf-8")[-3000:]
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"http://{http}/v2/health/ready", timeout=2).status_code == 200
        return False

    try:
        wait_until(answers, 120, "Triton's readiness")
        yield http, grpc
    finally:
        process.terminate()
        process.wait(60)
        log.close()


TRITON = find_triton()
pytestmark = [pytest.mark.release, pytest.mark.skipif(TRITON is None, reason="pip install --no-deps nvidia-pytriton")]

SIDE = 256
MOST = 4


class Scaled(nn.Module):
    """Pictures, each scaled by a number of its own, and these numbers."""

    def forward(self, image: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        return image * by[:, None, None, None], by + 0.0


class ScaledForms(ExportedForms):
    def network(self) -> nn.Module:
        return Scaled().eval()


IMAGE, SCALED = (TensorSpec(name=name, datatype="FP32", shape=(-1, 3, 8, 8)) for name in ("image", "scaled"))
BY, SAME, PEAK = (TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in ("by", "same", "peak"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    made = tmp_path_factory.mktemp("repository")
    options = TritonOptions(max_batch=MOST, delay_us=20_000, has_gpu=False)
    write_model(made, "net", forms(tmp_path_factory.mktemp("forms"), (SIDE, SIDE)), LABELS, options)
    write_model(made, "free", forms(tmp_path_factory.mktemp("free"), (-1, -1)), (), options)
    facts = Manifest(name="scaled", origin="trained", network=NetworkSpec(name="scaled"), sha256="cd" * 32)
    weights = Weights({}, facts)
    scaled = ScaledForms(weights, tmp_path_factory.mktemp("scaled"), (IMAGE, BY), (SCALED, SAME), tag="v1", shapes=[])
    write_model(made, "scaled", scaled, (), options)
    return made


@pytest.fixture(scope="module")
def triton(repository, tmp_path_factory):
    assert TRITON is not None
    with run_triton(TRITON, repository, tmp_path_factory.mktemp("triton")) as addresses:
        yield addresses


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, SIDE, SIDE), np.float32)


@pytest.fixture(params=["http", "grpc"])
def url(request, triton):
    """The address of Triton over each wire."""
    return triton[0] if request.param == "http" else f"grpc://{triton[1]}"


@pytest.mark.parametrize("shares", [True, False])
def test_answers_are_the_graphs_over_each_wire_and_through_shared_memory(url, repository, shares):
    session = onnxruntime.InferenceSession(repository / "net" / "1" / "model.onnx")
    with closing(TritonEngine(url, "net", shared_memory=shares, declared=[PEAK])) as engine:
        for count in (1, 3):
            given = pictures(count, count)
            found = engine.run({"image": given})
            for name, wanted in zip(("scores", "peak", "half"), session.run(None, {"image": given}), strict=True):
                np.testing.assert_allclose(found[name], wanted, rtol=1e-4)
        assert engine._pool.has_memory is shares  # Triton took the regions, which it would have refused by an error


def test_one_number_per_item_goes_in_and_out_as_the_graph_has_it(url):
    for shares in (False, True):
        with closing(TritonEngine(url, "scaled", declared=[IMAGE, BY, SCALED, SAME], shared_memory=shares)) as engine:
            assert (engine.inputs[1].shape, engine.outputs[1].shape) == ((-1,), (-1,))
            image, by = np.ones((4, 3, 8, 8), np.float32), np.arange(4, dtype=np.float32)
            found = engine.run({"image": image, "by": by})
            np.testing.assert_array_equal(found["same"], by)
            np.testing.assert_array_equal(found["scaled"][:, 0, 0, 0], by)


def test_calls_at_once_become_batches(triton):
    with closing(TritonEngine(triton[0], "net")) as engine:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda at: engine.run({"image": pictures(1, at)})["scores"], range(32)))
        for at, scores in enumerate(found):
            np.testing.assert_allclose(scores, pictures(1, at).mean((2, 3)), rtol=1e-4)
    (model,) = httpx2.get(f"http://{triton[0]}/v2/models/net/stats").json()["model_stats"]
    assert model["execution_count"] < model["inference_count"]
    assert max(batch["batch_size"] for batch in model["batch_stats"]) <= MOST


def test_what_it_refuses_is_told_and_sizes_that_the_graph_leaves_free_are_free(url):
    with pytest.raises(NotFound, match="nope"):
        TritonEngine(url, "nope")
    with closing(TritonEngine(url, "net")) as engine, pytest.raises(BadInput, match="batch-size must be <= 4"):
        engine.run({"image": pictures(MOST + 1)})
    with closing(TritonEngine(url, "free")) as engine:
        assert engine.run({"image": np.zeros((2, 3, 10, 14), np.float32)})["half"].shape == (2, 3, 5, 7)
