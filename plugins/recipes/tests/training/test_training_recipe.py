"""A recipe from training to files: its initial weights and its export."""

import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from fovea.cli.option_groups import CommandApp
from fovea.errors import Fault, FoveaError, InvalidOption, Malformed, NotFound
from fovea_recipes.training import checkpoint_import, recipe
from fovea_recipes.training import cli as training_cli
from fovea_recipes.training.cli import configure_recipe
from fovea_recipes.training.initializers import read_initializers
from fovea_recipes.training.publish import _round, arrays_of, publish
from fovea_recipes.training.recipe import Recipe, join_names, recipe_named, recipes
from fovea_recipes.training.trainer import fit
from shared.export.onnx_export import export_onnx
from shared.registry.weights import Manifest, NetworkSpec, read_weights, write_weights
from shared.settings import Settings


@pytest.fixture
def cli(monkeypatch, line, tmp_path):
    monkeypatch.setattr(recipe, "recipes", lambda: {"line": line})
    monkeypatch.setattr(training_cli, "settings", lambda: Settings(data_dir=tmp_path / "data"))
    app = CommandApp()
    app.command("train")(training_cli.train)
    app.command("import")(training_cli.import_checkpoint)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def test_recipes_of_every_service_are_found_and_unknown_or_unfinished_ones_are_told(monkeypatch):
    found = recipes()
    assert list(found) == sorted(found)
    for name, kind in found.items():
        assert (kind.name, bool(kind.weights), bool((kind.__doc__ or "").strip())) == (name, True, True)
    with pytest.raises(NotFound, match="pranet-demo"):
        recipe_named("soup")

    class Unfinished(Recipe, name="unfinished", weights="x"):
        pass

    monkeypatch.setattr(recipe, "recipes", lambda: {"unfinished": Unfinished})
    with pytest.raises(Fault, match="no batches and no config and no loss and no measure and no prepare and no score"):
        recipe_named("unfinished")


def test_knobs_are_set_by_name_and_dots_reach_into_groups(line):
    chosen = configure_recipe(line, ["seed=7", "schedule.steps=5", "schedule.clamp=0.25"])
    assert (chosen.seed, chosen.schedule.steps, chosen.schedule.clamp) == (7, 5, 0.25)
    assert chosen.schedule.rate == line().schedule.rate


@pytest.mark.parametrize(("assignment", "told"), [
    ("seed", "name=value"), ("seed=x", "seed"), ("flavour=1", "flavour"), ("soup.x=1", "soup"),
    ("schedule.steps=0", r"schedule\.steps"), ("schedule.soup=0", r"schedule\.soup"),
])  # fmt: skip
def test_a_wrong_knob_is_told_by_its_name(line, assignment, told):
    with pytest.raises(InvalidOption, match=told):
        configure_recipe(line, [assignment])


def test_published_weights_are_those_that_were_measured_and_a_manifest_says_how_to_make_them_again(line, tmp_path):
    manifest = publish(line(), fit(line(), tmp_path), tmp_path / "out")
    found = read_weights(tmp_path / "out" / "line.safetensors")
    net = line().network()
    net.load_state_dict({key: torch.from_numpy(array) for key, array in found.arrays.items()})
    assert manifest.metrics == {"error": round(line().measure(net.eval())["error"], 5)}
    assert found.arrays["layer.weight"] == found.arrays["layer.weight"].astype(np.float16)
    publish(line(seed=4), fit(line(seed=4), tmp_path / "four"), tmp_path / "out", notes={"ablation": {"error": 2.0}})
    told = json.loads((tmp_path / "out" / "line.json").read_text())
    assert (told["recipe"]["name"], told["recipe"]["seed"], told["recipe"]["schedule"]["steps"]) == ("line", 4, 60)
    assert told["network"] == {"name": "line", "config": {"width": 1}}
    assert told["data"] == {"digest": "line shifted by -1.0", "description": "points on a line"}
    assert told["code"]["torch"] == torch.__version__.partition("+")[0] or told["code"]["torch"] == torch.__version__
    assert (told["notes"]["steps"], told["notes"]["ablation"], told["parameters"]) == (60, {"error": 2.0}, 4)


def test_train_without_a_name_lists_recipes_and_with_one_writes_weights(cli, tmp_path):
    result = cli("train")
    assert (result.exit_code, "line" in result.output, "Fits y = 3x - 1." in result.output) == (0, True, True)
    result = cli("train", "line", "--out", tmp_path / "out", "--set", "schedule.steps=40", "--device", "cpu")
    assert (result.exit_code, "error" in result.output) == (0, True), result.output
    assert all((tmp_path / file).exists() for file in ("out/line.safetensors", "data/training/line/last.safetensors"))


@pytest.mark.parametrize(("folder", "name", "told"), [
    ("细胞", None, "no letter a to z"), ("a", "pranet", "trains another network"), ("a/b.zip", None, "no folder"),
    ("a", "mine", "has the network pranet-lite, and patnet"),
])  # fmt: skip
def test_a_training_never_takes_the_name_of_another_network(monkeypatch, tmp_path, folder, name, told):
    monkeypatch.setattr(training_cli, "settings", lambda: Settings(data_dir=tmp_path / "data"))
    (tmp_path / folder.removesuffix("/b.zip")).mkdir()
    own = Manifest(name="mine", origin="trained", network=NetworkSpec(name="pranet-lite"))
    write_weights(tmp_path / "data" / "weights", {"x": np.zeros(1, np.float32)}, own)
    with pytest.raises(FoveaError, match=told):
        training_cli.train("patnet", own=training_cli.OwnData(tmp_path / folder), name=name)
    assert join_names(["E. coli, live", "Pollen"]) == "E. coli live,Pollen"


def test_verbs_load_no_torch_until_they_run():
    code = "import sys, fovea_recipes.training.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_network_is_rounded_to_exactly_what_is_stored(tmp_path, dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))
    before = arrays_of(network)["0.weight"].copy()
    _round(network, dtype)
    manifest = Manifest(name="net", origin="trained", network=NetworkSpec(name="net"), dtype=dtype)
    write_weights(tmp_path, arrays_of(network), manifest)
    stored = read_weights(tmp_path / "net.safetensors").arrays
    assert not np.array_equal(stored["0.weight"], before)
    for key, array in arrays_of(network).items():
        np.testing.assert_array_equal(array, stored[key], err_msg=key)


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
        how = {"dynamo": False, "training": mode, "do_constant_folding": folded}
        torch.onnx.export(net.eval(), (torch.rand(1, 3, 8, 8),), str(file), **how)
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
    with pytest.raises(InvalidOption, match=r"stem\.0\.weight", check=lambda told: "Mode.PRESERVE" in told.hint):
        checkpoint_import.import_weights("toy", file, tmp_path / "weights")
    imported = checkpoint_import.import_weights("toy", exported(net, file, folded=False), tmp_path / "weights")
    assert imported.notes["missing"] == ["stem.1.num_batches_tracked"]


def test_tensors_in_other_files_are_not_fetched_and_what_is_no_graph_is_malformed(tmp_path, net):
    file = exported(net, tmp_path / "net.onnx", folded=False)
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="beside", size_threshold=0)
    with pytest.raises(Malformed, match="other files"):
        read_initializers(file)
    for content in (b"", b"x" * 100, b"\x08\x07\x12"):
        file.write_bytes(content)
        with pytest.raises(Malformed):
            checkpoint_import.read_checkpoint_file(file, 10**6)


X = {"image": torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))}


def test_a_graph_is_exported_as_it_predicts_and_one_that_computes_something_else_never_put_in_place(tmp_path):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    assert export_onnx(net, tmp_path / "deep" / "net.onnx", X, ["y"]).max_difference < 1e-5

    class Moody(nn.Module):
        calls = 0  # a tracer freezes what this network decides anew each time

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    path = tmp_path / "net.onnx"
    path.write_bytes(b"the graph of before")
    with pytest.raises(Fault, match="differs"):
        export_onnx(Moody(), path, X, ["y"])
    assert path.read_bytes() == b"the graph of before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "net.onnx"]


def test_networks_exported_side_by_side_do_not_disturb_each_other(tmp_path):
    def one(index):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        return export_onnx(net, tmp_path / f"{index}.onnx", {"x": torch.rand(1, 3, 16, 16)}, ["y"])

    with ThreadPoolExecutor(4) as pool:
        assert all(parity.max_difference < 1e-4 for parity in pool.map(one, range(12)))
