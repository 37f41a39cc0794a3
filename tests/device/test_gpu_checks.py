"""The checks of `make gpu` on stand-ins for a card: its checks, its timings, its report and its limits of time."""

import json
import sys
from dataclasses import asdict

import onnx
import psutil
import pytest
import torch

from loadtests.gpu import __main__ as command
from loadtests.gpu.decode import LLAMA, fit_batch, time_decode
from loadtests.gpu.timing import Row, card_named, row_of
from loadtests.gpu.vision import time_graph
from services.llm_longctx.kernels.device.shapes import ModelShape
from tests.device.test_engine import net
from tests.gpu import checks
from tests.harness.waiting import wait_until

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checks_of_kernels_hold_for_plain_ones(dtype):
    checks.check_decode(CPU, "cpu_torch", dtype, (33, 0, 1, 70), 3, 16)
    checks.check_prefill(CPU, "cpu_torch", dtype, 150, 16)
    checks.check_merge(CPU, "cpu_torch", dtype)
    checks.check_sampling(CPU, "cpu_torch", 50)
    assert checks.check_engine(lambda model: model, net(), "cpu_torch", 16, 4).runner.passes.graphs is None


def test_a_case_that_fails_is_a_row_that_says_why(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory\nmore")

    note = "RuntimeError: CUDA out of memory"
    assert row_of("kernels", "a", "b", fail, CPU).note == note
    monkeypatch.setattr("loadtests.gpu.decode.Engine", fail)
    shape = ModelShape("tiny", 2, 32, 4, 2, 16, 48, 64)
    ours, vllm = time_decode(CPU, None, shape, 2, 40, torch.float32, "cpu_torch")
    assert (ours.by, ours.note, vllm.by) == ("ours", f"failed: {note}", "vLLM")


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_runtime_without_cuda_is_not_timed_as_a_card(tmp_path):
    """ONNX Runtime goes to the processor silently, and its time would be the card's in the report."""
    axes = ["n", 3, "h", "w"]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes) for name in "xy")
    made = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "a.onnx")
    plain, *ours = time_graph("relu", tmp_path / "a.onnx", torch.device("cuda", 0), tmp_path, 8)
    assert (plain.by, plain.measured_ms) == ("ONNX Runtime", None)
    assert "CUDAExecutionProvider did not start" in plain.note
    assert [row.measured_ms for row in ours] == [None] * 3


@pytest.mark.parametrize(("name", "card"), [
    ("NVIDIA L4", "L4"), ("NVIDIA L40S", None), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA H100 PCIe", "H100"),
])  # fmt: skip
def test_a_card_is_known_by_its_whole_name(name, card):
    found = card_named(name)
    assert card == (found and found.name)


def test_a_batch_is_halved_until_it_fits(monkeypatch):
    for free, batch in ((40 << 30, 16), (20 << 30, 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 << 30))
        assert fit_batch(torch.device("cuda", 0), LLAMA, 32, 8192, torch.bfloat16) == batch


@pytest.mark.release
def test_a_dry_run_goes_through_every_part(tmp_path):
    assert command.main(["--dry-run", "--out", str(tmp_path)]) == 0
    [page] = tmp_path.iterdir()
    text = page.read_text()
    assert "**No GPU ran this.**" in text
    for found in ("test_recorded_steps_answer_as_a_cpu[4] | pytest", "prefill, 256, sparse | FlexAttention",
                  "4-bit cache | ours", "rrformer | ours, onnx, fp32"):  # fmt: skip
        assert found in text
    assert "failed" not in text


def test_a_part_that_hangs_or_fails_keeps_its_rows(tmp_path):
    script = tmp_path / "part.py"
    script.write_text(
        "import json, subprocess, sys, time\n"
        "rows = sys.argv[sys.argv.index('--rows') + 1]\n"
        f"open(rows, 'w').write({json.dumps(json.dumps(asdict(Row('decode', 'one', 'ours'))))} + '\\n')\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60) if sys.argv[2] == 'decode' else sys.exit(3)\n"
    )
    kept, end = command.run_apart("decode", 1.5, (sys.executable, str(script)))
    assert (kept.name, end.note) == ("one", "failed: it took longer than 2 s")
    left = int((tmp_path / "child").read_text())
    wait_until(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)
    *_, end = command.run_apart("vision", 30, (sys.executable, str(script)))
    assert end.note == "failed: the process ended with 3"


def test_without_a_card_nothing_is_written(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "There is no GPU" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
