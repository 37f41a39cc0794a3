"""Weight formats of a decoder on a pretended device: few bits where Triton is, whole numbers elsewhere."""

import pytest

from fovea.errors import NotReady
from services.llm_longctx.kernels import Fp8Matrix, PackedMatrix
from services.llm_longctx.kernels.decode_step import HEAD
from services.llm_longctx.serving import weight_format
from services.llm_longctx.serving.weight_format import load_weights
from services.llm_longctx.tests.conftest import write_folder
from tests.device.pretend_cuda import PretendCuda


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model")


@pytest.mark.parametrize("name", ["q4", "fp8"])
def test_few_bits_lie_on_the_device(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(weight_format, "backends", lambda: ["reference", "triton"])
    monkeypatch.setattr(weight_format, "_capability", lambda _: 89)
    on_cpu = {}
    device = PretendCuda()
    with device.active():
        loaded = load_weights(folder, tmp_path, name, "cuda")
        for key, matrix in loaded.packed.items():
            assert matrix.data.device.type == "cuda"
            on_cpu[key] = matrix.to("cpu").data
    assert loaded.format == name
    assert isinstance(loaded.packed[HEAD], PackedMatrix)
    assert loaded.packed[HEAD].bits == 8
    kinds = {(type(matrix), getattr(matrix, "bits", 8)) for key, matrix in loaded.packed.items() if key != HEAD}
    assert kinds == {(PackedMatrix, 4) if name == "q4" else (Fp8Matrix, 8)}
    again = load_weights(folder, tmp_path, "fp32")
    assert on_cpu.keys() > {name for name, x in again.model.state_dict().items() if x.dim() == 2 and ".layers." in name}


def test_without_triton_a_device_has_whole_numbers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_format, "backends", lambda: ["reference", "cpu_ext"])
    with PretendCuda().active():
        assert load_weights(folder, tmp_path, "auto", "cuda").format == "bf16"
        with pytest.raises(NotReady, match="need Triton on cuda"):
            load_weights(folder, tmp_path, "q8", "cuda")


@pytest.mark.parametrize(("device", "why"), [("cuda", "8.9, and this GPU has 8.0"), ("cpu", "cpu is not a GPU")])
def test_fp8_is_refused_where_the_card_has_none(folder, tmp_path, monkeypatch, device, why):
    monkeypatch.setattr(weight_format.torch.cuda, "get_device_capability", lambda _: (8, 0))
    with PretendCuda().active(), pytest.raises(NotReady, match=why) as refused:
        load_weights(folder, tmp_path, "fp8", device)
    assert "q8" in str(refused.value.hint)
