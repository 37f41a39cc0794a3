"""Decode steps by Triton kernels on a pretended device: launches run in the interpreter, all else is watched."""

import contextlib
import copy
import importlib

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from services.llm_longctx.engine import Engine
from services.llm_longctx.kernels import pack, pack_fp8
from services.llm_longctx.kernels.decode_step import HEAD
from services.llm_longctx.methods import method
from services.llm_longctx.tests.interpreted import interpreted
from shared.lm.quantization import quantize
from tests.device.paths import TRITON, knobs_of
from tests.device.pretend_cuda import PretendCuda, to_cuda
from tests.device.test_engine import IDS, PLAN, PROMPT, net, on_cuda, plain, play
from tests.harness.hypothesis_profiles import in_depth

pytest.importorskip("triton", reason="triton is not installed: its wheels are for Linux")
interpreter = importlib.import_module("triton.runtime.interpreter")
STEPS = 2  # interpreted ones are slow


@contextlib.contextmanager
def interpreted_launches(see):
    """Interpret kernels, unwatched; `see` receives the name of each launch, and a function that repeats it."""
    plain = interpreter.GridExecutor.__call__

    def launch(self, *args, **kwargs):
        def run():
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                plain(self, *args, **kwargs)

        run()
        see(self.fn.__name__, run)

    with interpreted() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", launch)
        yield


@pytest.fixture
def launches():
    done: list[str] = []
    with interpreted_launches(lambda name, _: done.append(name)):
        yield done


@pytest.mark.parametrize(("name", "bits"), in_depth(TRITON, [("dense", 16), ("dense", 8), ("duo", 68)]))
def test_a_step_is_sent_once_and_answers_as_on_a_cpu(launches, name, bits):
    how, device, wanted = method(name, **knobs_of(name)[0]), PretendCuda(), plain(name, 0, bits)[: STEPS + 1]
    with device.active():
        s = Engine(on_cuda(device), how, PLAN, page=16, backend="triton", cache_bits=bits, kv_bytes=1 << 20).open()
        rows = [s.prefill(IDS[:PROMPT])[-1]]
        launches.clear()
        for i in range(STEPS):
            before = device.transfers["sent"]
            with device.decoding():
                rows.append(s.step(IDS[PROMPT + i]))
            packs = bits != 16  # pages that have become full are packed where the host says
            assert device.transfers["sent"] - before == 1 or packs
        assert not device.transfers["read"]
        assert torch.allclose(torch.stack(rows).cpu(), wanted, atol=5e-4)
    assert len(launches) >= STEPS * net().config.layers


def whole(matrix) -> torch.Tensor:
    found = matrix.unpack()
    return found if isinstance(found, torch.Tensor) else torch.from_numpy(found.dequantize())


@pytest.mark.parametrize("bits", in_depth([8, 4, "fp8"], [4, "fp8"]))
def test_few_bit_weights_are_read_as_they_are_packed(launches, bits):
    matrices = {name: x for name, x in net().state_dict().items() if x.dim() == 2 and ".layers." in name}
    matrices[HEAD] = net().output_matrix
    packed = {name: pack_fp8(x) if bits == "fp8" else pack(quantize(x.numpy(), bits)) for name, x in matrices.items()}
    plain = copy.deepcopy(net())
    plain.load_state_dict(plain.state_dict() | {name: whole(one) for name, one in packed.items()})
    wanted, device = play(plain, method("dense"), 16, prompt=9), PretendCuda()
    with device.active():
        model = to_cuda(plain, device)
        on_device = {name: one.to("cuda") for name, one in packed.items()}
        s = Engine(model, page=16, backend="triton", kv_bytes=1 << 20, packed=on_device).open()
        s.prefill(IDS[:9])
        launches.clear()
        with device.decoding():
            found = s.step(IDS[9])
        # Queries, keys, values, output, gate with up, and down; then the logits.
        assert launches.count("_multiply") == 6 * net().config.layers + 1
        assert launches.count("_round_rows") == (4 * net().config.layers + 1 if bits == "fp8" else 0)
        # Activations are rounded to FP8, too.
        close = torch.allclose(found.cpu(), wanted[1], atol=0.15 if bits == "fp8" else 5e-4)
    assert close
