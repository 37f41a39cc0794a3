"""Tensors out of ONNX graphs: under the network's own names, and nothing else of the file is used."""

import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from fovea.errors import InvalidOption, Malformed
from fovea_recipes.training import checkpoint_import
from fovea_recipes.training.initializers import read_initializers


class Block(nn.Module):
    """Layers that exporters rename: linear ones on tokens, with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.qkv(self.norm(x)))


class Net(nn.Module):
    """A stem with a batch norm, blocks in lists of lists and in a sequence, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.layers = nn.ModuleList([nn.ModuleList([Block(), Block()]), nn.ModuleList([Block()])])
        self.tower, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for blocks in self.layers:
            for block in blocks:
                x = block(x)
        return self.head(self.tower(x).mean(1))


def exported(net: nn.Module, file: Path, *, folded: bool) -> Path:
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch speaks of its other exporter
        torch.onnx.export(
            net.eval(), (torch.rand(1, 3, 8, 8),), str(file), dynamo=False, training=mode, do_constant_folding=folded
        )
    return file


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    made.stem[1].running_mean.normal_()
    return made


@pytest.mark.parametrize("alike", [False, True])
def test_every_tensor_comes_back_under_its_own_name(tmp_path, net, alike):
    if not alike:
        for parameter in net.parameters():
            parameter.data.normal_()  # until then norms are all ones, which exporters store once
    state = {key: value for key, value in net.state_dict().items() if value.ndim}
    found = read_initializers(exported(net, tmp_path / "net.onnx", folded=False))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_folded_graph_is_refused_with_the_way_to_export_it(tmp_path, net, monkeypatch):
    monkeypatch.setattr(checkpoint_import, "network", lambda _name: Net())
    monkeypatch.setattr(checkpoint_import, "layouts", lambda _name: ({},))
    file = exported(net, tmp_path / "net.onnx", folded=True)
    with pytest.raises(InvalidOption, match=r"stem\.0\.weight") as caught:
        checkpoint_import.import_weights("toy", file, tmp_path / "weights")
    assert "TrainingMode.PRESERVE" in str(caught.value.hint)
    imported = checkpoint_import.import_weights("toy", exported(net, file, folded=False), tmp_path / "weights")
    assert imported.missing == ["stem.1.num_batches_tracked"]


def test_tensors_in_other_files_are_not_fetched(tmp_path, net):
    file = exported(net, tmp_path / "net.onnx", folded=False)
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="beside", size_threshold=0)
    with pytest.raises(Malformed, match="other files"):
        read_initializers(file)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x08\x07\x12"])
def test_what_is_no_graph_is_malformed(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(Malformed):
        checkpoint_import.read_checkpoint_file(tmp_path / "a.onnx", 10**6)
