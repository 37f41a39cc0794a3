"""Providers for GPUs, with stubs in the place of a card: options, profiles, binding, half precision, shared engines."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from fovea.api.tensors import TensorSpec
from fovea.errors import NotReady
from shared.engines import onnx as onnx_engine
from shared.engines import tensorrt as tensorrt_engine
from shared.engines.factory import ModelArtifacts, open_engine
from shared.engines.gpu_providers import BuiltEngines, profile, tensorrt_provider
from shared.engines.half_precision import halve
from shared.engines.onnx import OnnxEngine
from shared.engines.tensorrt import TensorRTEngine
from shared.engines.tests.graphs import graph, identity
from shared.registry import LoadContext
from shared.storage import ObjectStore

PICTURES = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, -1, -1))
CELLS = TensorSpec(name="cells", datatype="FP32", shape=(-1, -1, 2))
FIXED = TensorSpec(name="x", datatype="FP32", shape=(1, 3))


def test_profiles_name_all_inputs_where_any_axis_is_free_and_tensorrt_keeps_what_it_builds(tmp_path):
    for precision in ("fp32", "fp16"):
        name, options = tensorrt_provider(2, tmp_path, [PICTURES], precision)
        assert name == "TensorrtExecutionProvider"
        assert (options["device_id"], options["trt_fp16_enable"]) == (2, precision == "fp16")
        assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
        assert "trt_profile_max_shapes" in options
    assert profile([FIXED]) == {}
    named = profile([PICTURES, CELLS, FIXED])
    assert named["trt_profile_min_shapes"] == "image:1x3x32x32,cells:1x1x2,x:1x3"
    assert named["trt_profile_opt_shapes"] == "image:4x3x640x640,cells:4x32x2,x:1x3"
    assert named["trt_profile_max_shapes"] == "image:16x3x2048x2048,cells:16x256x2,x:1x3"


class Card:
    """ONNX Runtime with a GPU that is only said to be there: sessions run on the CPU and note what was bound."""

    def __init__(self, monkeypatch) -> None:
        self.wanted: list = []
        self.sent: list[tuple[str, tuple[int, ...]]] = []
        self.outputs: list[tuple[str, str, int]] = []
        value, card = onnxruntime.OrtValue, self

        class Session(onnxruntime.InferenceSession):
            def __init__(self, source, options, providers) -> None:
                card.wanted = providers
                super().__init__(source, options, providers=["CPUExecutionProvider"])

            def get_providers(self):
                return [name for name, _ in card.wanted]

            def run(self, *_):
                pytest.fail("a run with hidden copies")

            def io_binding(self):
                binding = super().io_binding()
                bind = binding.bind_output
                binding.bind_output = lambda *where: (card.outputs.append(where), bind(where[0], "cpu"))
                return binding

        class Value:
            @staticmethod
            def ortvalue_from_numpy(array, device, index):
                card.sent.append((f"{device}:{index}", array.shape))
                return value.ortvalue_from_numpy(array)

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "OrtValue", Value)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: None, raising=False)
        every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
        monkeypatch.setattr(tensorrt_engine, "_load_libraries", lambda: None)


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch)


def test_a_run_binds_tensors_on_the_card_keeps_memory_of_one_shape_and_leaves_text_with_the_host(card, monkeypatch):
    engine = OnnxEngine(identity("FP32"), device="cuda:1")
    for rows in (2, 2, 3):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        assert np.array_equal(engine.run({"x": x})["y"], x)
    assert (card.sent, card.outputs) == ([("cuda:1", (2, 3)), ("cuda:1", (3, 3))], [("y", "cuda", 1)] * 3)
    assert engine.provider == "CUDAExecutionProvider"
    options = dict(card.wanted)["CUDAExecutionProvider"]
    assert (options["device_id"], options["use_tf32"]) == (1, "0")
    monkeypatch.setattr(onnx_engine.OnnxEngine, "_run_on_gpu", lambda *_: pytest.fail("text on a card"))
    engine = OnnxEngine(identity("BYTES"), device="cuda")
    engine._session.run = lambda _, feeds: [feeds["x"]]
    assert engine.run({"x": np.array([[b"a", b"b", b"c"]], object)})["y"].tolist() == [[b"a", b"b", b"c"]]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net-0123.onnx"
    path.write_bytes(identity("FP32"))
    return path


def test_engines_that_one_node_built_are_there_on_the_next_and_a_store_that_is_away_stops_nothing(card, file, tmp_path):
    stored = ObjectStore.open((tmp_path / "objects").as_uri())
    artifacts = ModelArtifacts("net", (FIXED,), (FIXED,), graph=lambda: file)
    options = {"vision_precision": "fp16"}

    def start(node: str) -> TensorRTEngine:
        where = {"device": "cuda:1", "cache": tmp_path / node}
        context = LoadContext(engine="tensorrt", **where, objects=stored, options=options)
        return open_engine(context, artifacts)

    opened = start("one")
    built = tmp_path / "one/tensorrt/net-0123-fp16"
    (built / "engine_sm90.engine").write_bytes(b"built")
    (built / "cache_sm90.timing").write_bytes(b"times")
    opened.close()
    second = start("two")
    fetched = tmp_path / "two/tensorrt/net-0123-fp16"
    held = {one.name: one.read_bytes() for one in fetched.iterdir()}
    assert held == {"engine_sm90.engine": b"built", "cache_sm90.timing": b"times"}
    (first, asked), (second_choice, _), *_ = card.wanted
    assert (first, second_choice) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert (asked["trt_engine_cache_path"], asked["device_id"]) == (str(fetched), 1)
    assert (second.provider, second.reason) == ("TensorrtExecutionProvider", "FOVEA_ENGINE=tensorrt.")
    (fetched / "cache_sm90.timing").write_bytes(b"more times")
    second.close()
    assert stored.get("tensorrt/net-0123-fp16/cache_sm90.timing") == b"more times"
    (tmp_path / "taken").write_text("a file")
    away = BuiltEngines(tmp_path / "here", "net", ObjectStore.open((tmp_path / "taken").as_uri()))
    (away.folder / "one.engine").write_bytes(b"built")
    away.fetch()
    away.share()
    BuiltEngines(tmp_path / "alone", "net", None).fetch()


def test_half_precision_keeps_the_tensors_outside_and_the_answer(tmp_path):
    path = tmp_path / "net.onnx"
    shape = {"x": ("FP32", ["n", 8]), "w": ("FP32", [8, 4])}
    path.write_bytes(graph([("MatMul", ["x", "w"], ["h"]), ("Relu", ["h"], ["y"])], shape, {"y": ("FP32", ["n", 4])}))
    half = halve(path, tmp_path / "cache")
    assert half.name == "net-fp16.onnx"
    before = half.stat().st_mtime_ns
    assert halve(path, tmp_path / "cache").stat().st_mtime_ns == before, "it is made once"
    draw = np.random.default_rng(0)
    feeds = {"x": draw.normal(size=(3, 8)).astype(np.float32), "w": draw.normal(size=(8, 4)).astype(np.float32)}
    whole, found = OnnxEngine(path).run(feeds)["y"], OnnxEngine(half).run(feeds)["y"]
    assert found.dtype == np.float32
    assert np.abs(found - whole).max() < 0.02  # on a CPU it is often computed in float32
    casts = [node for node in onnx.load(half).graph.node if node.op_type == "Cast"]
    kinds = sorted(cast.attribute[0].i for cast in casts)
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT16]


def test_auto_on_a_card_takes_half_precision_and_a_graph_that_can_not_be_halved_is_not_ready(
    card, file, tmp_path, monkeypatch
):
    context = LoadContext(device="cuda", cache=tmp_path / "cache", options={"vision_precision": "fp16"})
    engine = open_engine(context, ModelArtifacts("net", (FIXED,), (FIXED,), graph=lambda: file))
    assert (tmp_path / "cache/net-0123-fp16.onnx").exists()
    assert "auto takes the first of onnx, torch that opens" in engine.reason

    def refuse(*_, **__):
        raise ValueError

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", refuse)
    with pytest.raises(NotReady, match="can't be converted to float16"):
        halve(file, tmp_path)
