"""Weight formats of a decoder on a pretended device: few bits where Triton is, whole numbers elsewhere."""

import pytest

from fovea.errors import NotReady
from services.llm_longctx.serving import weight_format
from services.llm_longctx.serving.weight_format import load_weights
from services.llm_longctx.tests.conftest import write_folder
from tests.device.pretend_cuda import PretendCuda


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model")


def test_few_bits_lie_on_the_device(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_format, "backends", lambda: ["reference", "triton"])
    on_cpu = {}
    device = PretendCuda()
    with device.active():
        loaded = load_weights(folder, tmp_path, "q4", "cuda")
        for name, matrix in loaded.packed.items():
            assert matrix.data.device.type == "cuda"
            on_cpu[name] = matrix.to("cpu").data
    assert loaded.format == "q4"
    assert {matrix.bits for matrix in loaded.packed.values()} == {4, 8}, "the logits' matrix keeps 8"
    again = load_weights(folder, tmp_path, "fp32")
    assert on_cpu.keys() > {name for name, x in again.model.state_dict().items() if x.dim() == 2 and ".layers." in name}


def test_without_triton_a_device_has_whole_numbers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_format, "backends", lambda: ["reference", "cpu_ext"])
    with PretendCuda().active():
        assert load_weights(folder, tmp_path, "auto", "cuda").format == "bf16"
        with pytest.raises(NotReady, match="need Triton on cuda"):
            load_weights(folder, tmp_path, "q8", "cuda")
