"""Export to ONNX: compared before it exists, at any size, replaced at once or not at all."""

import onnxruntime
import pytest
import torch
from torch import nn

from fovea.errors import Fault
from shared.export.onnx_export import export_onnx


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        found = self.conv(x)
        return found, 2 * found


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_named_axes_take_any_length_and_the_parity_is_stated(tmp_path, x):
    net, path = Double(), tmp_path / "deep" / "net.onnx"
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in ("image", "one", "two")}
    parity = export_onnx(
        net, path, {"image": x}, ["one", "two"], dynamic=axes, probes=[{"image": torch.randn(1, 3, 5, 4)}]
    )
    assert parity.max_difference < 1e-5 < parity.max_value
    assert parity.shapes == (((2, 3, 8, 12),), ((1, 3, 5, 4),))
    one, two = session(path).run(None, {"image": torch.randn(3, 3, 16, 6).numpy()})
    assert one.shape == two.shape == (3, 2, 16, 6)


def test_a_graph_that_computes_something_else_is_never_put_in_place(tmp_path, x):
    class Moody(nn.Module):
        """A tracer freezes what this network decides anew each time."""

        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    path = tmp_path / "net.onnx"
    path.write_bytes(b"the graph of before")
    with pytest.raises(Fault, match="differs"):
        export_onnx(Moody(), path, {"image": x}, ["y"])
    assert path.read_bytes() == b"the graph of before"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_the_network_is_exported_as_it_predicts_not_as_it_trains(tmp_path, x):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    assert export_onnx(net, tmp_path / "net.onnx", {"image": x}, ["y"]).max_difference < 1e-5


def test_networks_exported_side_by_side_do_not_disturb_each_other(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def one(index):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        return export_onnx(net, tmp_path / f"{index}.onnx", {"x": torch.rand(1, 3, 16, 16)}, ["y"])

    with ThreadPoolExecutor(4) as pool:
        assert all(parity.max_difference < 1e-4 for parity in pool.map(one, range(12)))
