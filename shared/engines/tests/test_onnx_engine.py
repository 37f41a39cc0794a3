"""ONNX Runtime takes and gives every datatype, any batch, from any thread, and says clearly what it can't run."""

import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from fovea.errors import Fault, InvalidOption, Malformed, NotReady, TooLarge
from shared.engines.idle_memory import IdleShrinker
from shared.engines.onnx import OnnxEngine, session_options
from shared.engines.tensorrt import TensorRTEngine, missing
from shared.engines.tests.graphs import NUMBERS, adder, graph, identity
from shared.rpc.tensors import DTYPES
from shared.serving.memory_guard import read_resident_bytes


def sample(datatype, rows=2):
    if datatype == "BYTES":
        return np.array([[b"ab", "ä".encode(), b""]] * rows, dtype=object)
    return (np.arange(3 * rows).reshape(rows, 3) % 2).astype(DTYPES[datatype])


@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_datatype_goes_in_and_comes_out_unchanged(datatype):
    engine = OnnxEngine(identity(datatype), threads=1)
    assert engine.inputs[0].model_dump() == {"name": "x", "datatype": datatype, "shape": (-1, 3)}
    for rows in (1, 5):
        x = sample(datatype, rows)
        y = engine.run({"x": x})["y"]
        assert y.dtype == DTYPES[datatype]
        assert (y == x).all()
    engine.close()


def test_array_that_is_not_in_one_piece_is_taken():
    x = np.arange(18, dtype=np.float32).reshape(6, 3)
    engine = OnnxEngine(identity("FP32"), threads=1)
    assert (engine.run({"x": x[::2]})["y"] == x[::2]).all()
    wide = np.arange(12).astype(ml_dtypes.bfloat16).reshape(2, 6)[:, ::2]
    assert (OnnxEngine(identity("BF16"), threads=1).run({"x": wide})["y"] == wide).all()


def test_sizes_that_the_graph_cannot_take_are_the_callers_mistake(capfd):
    engine = OnnxEngine(adder(), threads=1)
    with pytest.raises(InvalidOption, match=r"can't run a FP32 \[2, 3\], b FP32 \[2, 4\]"):
        engine.run({"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 4), np.float32)})
    assert capfd.readouterr().err == ""  # no native log lines for a caller's mistake
    assert engine.run({"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})["sum"].shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 99", TooLarge),
        ("std::bad_alloc", TooLarge),
        ("CUDA failure 700: an illegal memory access was encountered", Fault),
        ("axis == 1 || axis == largest was false", InvalidOption),
    ],
)
def test_failed_run_is_blamed_on_size_device_or_shape(text, kind):
    class Failing:
        def run(self, names, feeds):
            raise RuntimeError(text)

    engine = OnnxEngine(identity("FP32"), threads=1)
    engine._session = Failing()
    with pytest.raises(kind) as caught:
        engine.run({"x": np.zeros((1, 3), np.float32)})
    assert text not in caught.value.detail


def test_text_that_is_not_utf8_is_malformed():
    with pytest.raises(Malformed, match="not UTF-8"):
        OnnxEngine(identity("BYTES"), threads=1).run({"x": np.array([[b"\xff", b"", b""]], dtype=object)})


@pytest.mark.parametrize("source", [b"", b"not a graph"])
def test_broken_graph_is_not_ready(source, tmp_path):
    with pytest.raises(NotReady, match="can't load"):
        OnnxEngine(source)
    (tmp_path / "g.onnx").write_bytes(source)
    with pytest.raises(NotReady):
        OnnxEngine(tmp_path / "g.onnx")
    with pytest.raises(NotReady):
        OnnxEngine(tmp_path / "absent.onnx")


def test_threads_share_an_engine():
    inputs = {"a": ("FP32", ["n", 64]), "b": ("FP32", [64, 64])}
    engine = OnnxEngine(graph([("MatMul", ["a", "b"], ["y"])], inputs, {"y": ("FP32", ["n", 64])}), threads=1)
    rng = np.random.default_rng(3)
    b = rng.standard_normal((64, 64)).astype(np.float32)
    jobs = [rng.standard_normal((1 + i % 5, 64)).astype(np.float32) for i in range(64)]
    alone = [engine.run({"a": a, "b": b})["y"] for a in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda a: engine.run({"a": a, "b": b})["y"], jobs))
    assert all((x == y).all() for x, y in zip(alone, together, strict=True))


def test_waiting_threads_do_not_spin():
    options = session_options(2)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU build")
def test_missing_gpu_is_said():
    with pytest.raises(NotReady, match="no cuda:0") as caught:
        OnnxEngine(identity("FP32"), device="cuda:0")
    assert "gpu" in caught.value.hint
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
    engine.run({"x": np.ones((2**24, 3), np.float32)})
    assert read_resident_bytes() - before > 150 * 2**20
    engine.shrink()
    assert read_resident_bytes() - before < 50 * 2**20
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
