"""ONNX Runtime and Torch take and give every datatype, from any thread; `auto` takes the fastest that opens."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import nn

from fovea.api.tensors import TensorSpec
from fovea.errors import Fault, InvalidOption, Malformed, NotReady, TooLarge
from shared.engines import ModelArtifacts, factory, open_engine
from shared.engines.idle_memory import IdleShrinker
from shared.engines.onnx import OnnxEngine, session_options
from shared.engines.tensorrt import TensorRTEngine, missing
from shared.engines.tests.graphs import NUMBERS, adder, graph, identity
from shared.engines.torch import TORCH_DATATYPES, TorchEngine
from shared.registry import LoadContext
from shared.rpc.tensors import DTYPES
from shared.serving.memory_guard import read_resident_bytes
from shared.telemetry import configure_logs, device_loss


@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_datatype_goes_in_and_comes_out_unchanged(datatype):
    engine = OnnxEngine(identity(datatype), threads=1)
    assert engine.inputs[0].model_dump() == {"name": "x", "datatype": datatype, "shape": (-1, 3)}
    engines = [engine, TorchEngine(nn.Identity(), [spec(datatype=datatype)], [spec("y", datatype)])]
    for one in engines if datatype in TORCH_DATATYPES.values() else engines[:1]:
        for rows in (1, 5):
            x = (np.arange(3 * rows).reshape(rows, 3) % 2).astype(DTYPES[datatype])
            x = np.array([[b"ab", "ä".encode(), b""]] * rows, dtype=object) if datatype == "BYTES" else x
            y = one.run({"x": x})["y"]
            assert y.dtype == DTYPES[datatype]
            assert (y == x).all()
        one.close()


def test_read_only_and_strided_arrays_are_taken_by_either_engine():
    x = np.arange(18, dtype=np.float32).reshape(6, 3)
    engine = OnnxEngine(identity("FP32"), threads=1)
    assert (engine.run({"x": x[::2]})["y"] == x[::2]).all()
    wide = np.arange(12).astype(ml_dtypes.bfloat16).reshape(2, 6)[:, ::2]
    assert (OnnxEngine(identity("BF16"), threads=1).run({"x": wide})["y"] == wide).all()
    frozen = np.ones((4, 3), np.float32)
    frozen.flags.writeable = False
    engine = TorchEngine(nn.Identity(), [spec()], [spec("y")])
    assert (engine.run({"x": frozen[::2]})["y"] == 1).all()
    assert engine.run({"x": np.ones((2, 6), np.float32)[:, ::2]})["y"].shape == (2, 3)
    half = TorchEngine(nn.Identity(), [spec(datatype="BF16")], [spec("y", "BF16")])
    assert (half.run({"x": wide})["y"] == wide).all()


def test_sizes_that_the_graph_or_the_network_cannot_take_are_the_callers_mistake(capfd):
    engine = OnnxEngine(adder(), threads=1)
    with pytest.raises(InvalidOption, match=r"can't run a FP32 \[2, 3\], b FP32 \[2, 4\]"):
        engine.run({"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 4), np.float32)})
    assert capfd.readouterr().err == ""  # no native log lines for a caller's mistake
    assert engine.run({"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})["sum"].shape == (2, 3)
    engine = TorchEngine(nn.Linear(3, 3), [spec(shape=(-1, -1))], [spec("y")])
    with pytest.raises(InvalidOption, match=r"can't run x FP32 \[2, 5\]"):
        engine.run({"x": np.zeros((2, 5), np.float32)})
    with pytest.raises(InvalidOption, check=lambda e: e.field == "x"):
        engine.run({"x": np.zeros((2, 5), np.int32)})


def test_failed_run_is_blamed_on_size_device_or_shape(monkeypatch):
    engine = OnnxEngine(identity("FP32"), threads=1)
    configure_logs()
    for text, kind, lost in (
        ("Failed to allocate memory for requested buffer of size 99", TooLarge, False),
        ("std::bad_alloc", TooLarge, False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", TooLarge, False),
        (Fail("FAIL : CUDA failure 700: an illegal memory access was encountered ; GPU=0"), Fault, True),
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later", Fault, True),
        ("CUDA error: uncorrectable ECC error encountered", Fault, True),
        ("CUDA error: invalid argument", Fault, False),
        ("axis == 1 || axis == largest was false: illegal", InvalidOption, False),
    ):
        monkeypatch.setattr(device_loss, "LOSSES", losses := [])
        engine._session = Mock(run=Mock(side_effect=text if isinstance(text, Fail) else RuntimeError(text)))
        with pytest.raises(kind, check=lambda e, text=text: str(text) not in e.detail):
            engine.run({"x": np.zeros((1, 3), np.float32)})
        assert bool(losses) == lost


def test_text_that_is_not_utf8_is_malformed_and_a_broken_graph_not_ready(tmp_path):
    with pytest.raises(Malformed, match="not UTF-8"):
        OnnxEngine(identity("BYTES"), threads=1).run({"x": np.array([[b"\xff", b"", b""]], dtype=object)})
    broken = tmp_path / "g.onnx"
    broken.write_bytes(b"not a graph")
    for source in (b"", b"not a graph", broken, tmp_path / "absent.onnx"):
        with pytest.raises(NotReady, match="can't load"):
            OnnxEngine(source)


def multiply() -> OnnxEngine:
    inputs = {"x": ("FP32", ["n", 3]), "w": ("FP32", [3, 3])}
    return OnnxEngine(graph([("MatMul", ["x", "w"], ["y"])], inputs, {"y": ("FP32", ["n", 3])}), threads=1)


@pytest.mark.parametrize("open_one", [multiply, lambda: TorchEngine(nn.Linear(3, 3), [spec()], [spec("y")], threads=1)])
def test_threads_share_an_engine_and_do_not_spin_while_they_wait(open_one):
    engine, rng = open_one(), np.random.default_rng(3)
    common = {"w": rng.standard_normal((3, 3)).astype(np.float32)} if engine.name == "onnx" else {}
    jobs = [{"x": rng.standard_normal((1 + i % 5, 3)).astype(np.float32), **common} for i in range(64)]
    alone = [engine.run(job)["y"] for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: engine.run(job)["y"], jobs))
    assert all((x == y).all() for x, y in zip(alone, together, strict=True))
    options = session_options(2)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU build")
def test_missing_gpu_is_said():
    with pytest.raises(NotReady, match="no cuda:0", check=lambda e: "gpu" in e.hint):
        OnnxEngine(identity("FP32"), device="cuda:0")
    with pytest.raises(NotReady):
        OnnxEngine(identity("FP32"), device="mps")


@pytest.mark.skipif(missing() is None, reason="there is a TensorRT build")
def test_missing_tensorrt_is_said(tmp_path):
    with pytest.raises(NotReady, match="TensorRT is not available: this build of ONNX Runtime has no Tensorrt"):
        TensorRTEngine(identity("FP32"), cache=tmp_path)


def test_provider_that_silently_falls_back_is_not_ready(monkeypatch):
    class Fallen:
        def __init__(self, *args, **more):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(NotReady, match="CUDAExecutionProvider did not start"):
        OnnxEngine(identity("FP32"), providers=[("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})])


def test_memory_of_a_large_run_is_given_back_once_the_engine_is_idle():
    steps = [("Mul", ["x", "x"], ["a"]), ("Sin", ["a"], ["b"]), ("Add", ["a", "b"], ["c"]), ("ReduceSum", ["c"], ["y"])]
    engine = OnnxEngine(graph(steps, {"x": ("FP32", ["n", 3])}, {"y": ("FP32", None)}), threads=1)
    engine.run({"x": np.ones((2, 3), np.float32)})
    before = read_resident_bytes()
    engine.run({"x": np.ones((2**22, 3), np.float32)})
    assert read_resident_bytes() - before > 38 * 2**20
    engine.shrink()
    assert read_resident_bytes() - before < 13 * 2**20
    assert engine.run({"x": np.full((1, 3), 2, np.float32)})["y"] == pytest.approx(3 * (4 + np.sin(4)))


def test_idle_engines_are_shrunk_once_and_those_in_use_are_not():
    class Held:
        def __init__(self):
            self.times = 0

        def shrink(self):
            self.times += 1

    shrinker, idle, busy = IdleShrinker(0.2), Held(), Held()
    shrinker.note_run(idle)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        shrinker.note_run(busy)
        time.sleep(0.02)
    assert (idle.times, busy.times) == (1, 0)
    shrinker.note_run(idle)
    time.sleep(0.6)
    assert (idle.times, busy.times) == (2, 1)


torch.set_num_threads(1)


def spec(name="x", datatype="FP32", shape=(-1, 3)):
    return TensorSpec(name=name, datatype=datatype, shape=shape)


class Doubled(nn.Module):
    def forward(self, x):
        return x, x + x

    def only_double(self, x):
        return (x + x,)


def test_several_outputs_are_named_in_order_and_one_method_may_be_called_instead_of_the_network():
    engine = TorchEngine(Doubled(), [spec()], [spec("same"), spec("twice")])
    found = engine.run({"x": np.ones((2, 3), np.float32)})
    assert list(found) == ["same", "twice"]
    assert (found["twice"] == 2).all()
    network = Doubled()
    engine = TorchEngine(network, [spec()], [spec("twice")], call=network.only_double)
    assert (engine.run({"x": np.ones((1, 3), np.float32)})["twice"] == 2).all()
    engine.close()


class Failing(nn.Module):
    def forward(self, x):
        if x.sum():
            raise InvalidOption("multiples of 32 only")
        return torch.empty(2**60)


def test_memory_that_runs_out_is_too_large_errors_of_ours_pass_through_and_a_missing_device_is_said():
    network = nn.Sequential(nn.Dropout(0.9), Failing())
    engine = TorchEngine(network, [spec()], [spec("y")])
    assert not network.training
    for fill, kind, told in ((0, TooLarge, "not enough memory"), (1, InvalidOption, "multiples of 32")):
        with pytest.raises(kind, match=told):
            engine.run({"x": np.full((2, 3), fill, np.float32)})
    for device in ("cuda:77", "no-such-device"):
        with pytest.raises(NotReady, match=device):
            TorchEngine(nn.Linear(3, 3), [spec()], [spec("y")], device=device)


@pytest.fixture
def forms(tmp_path):
    path = tmp_path / "g.onnx"
    path.write_bytes(identity("FP32"))
    return artifacts(lambda: path)


def artifacts(graph):
    return ModelArtifacts("net", (spec(),), (spec(),), graph=graph, network=lambda: (nn.Identity(), None))


def place(engine="auto", **more):
    return LoadContext(engine=engine, threads=1, **more)


def test_auto_goes_on_to_torch_when_the_graph_does_not_open_and_says_what_was_tried_when_nothing_does(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")

    def wrong():
        raise Fault("The ONNX graph differs from the network.")

    assert [open_engine(place(), artifacts(graph)).name for graph in (lambda: broken, wrong)] == ["torch"] * 2
    with pytest.raises(Fault):
        open_engine(place("onnx"), ModelArtifacts("net", graph=wrong))
    with pytest.raises(NotReady, match=r"onnx: 'net' has no ONNX form\. torch: 'net' has no torch form\."):
        open_engine(place(), ModelArtifacts("net"))


def test_only_the_form_that_is_needed_is_made_and_triton_needs_an_address(forms):
    def never():
        pytest.fail("was made")

    open_engine(place("torch"), artifacts(never))
    open_engine(place("onnx"), ModelArtifacts("net", graph=forms.graph, network=never))
    with pytest.raises(NotReady, match="No Triton server is named", check=lambda e: "FOVEA_TRITON_URL" in e.hint):
        open_engine(place("triton"), forms)


def test_missing_library_is_named_and_importing_the_package_loads_none(forms, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "shared.engines.torch", raising=False)
    with pytest.raises(NotReady, match="needs the library torch"):
        factory.open_engine(place("torch"), forms)
    monkeypatch.setattr(factory.importlib.util, "find_spec", lambda _: None)
    assert factory.missing_parts()["onnx"] == "the library onnxruntime is not installed"
    heavy = ("torch", "onnxruntime", "tritonclient", "onnx")
    script = f"import sys, shared.engines; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
