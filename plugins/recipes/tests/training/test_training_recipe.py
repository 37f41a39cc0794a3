"""Recipes are found by scan, their knobs set by name, their results described; the verbs say it in words."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fovea.cli.option_groups import CommandApp
from fovea.errors import InvalidOption, NotFound
from fovea_recipes.training import cli as training_cli
from fovea_recipes.training import recipe
from fovea_recipes.training.cli import configure_recipe
from fovea_recipes.training.publish import publish
from fovea_recipes.training.recipe import recipe_named, recipes
from fovea_recipes.training.trainer import fit
from shared.registry.weights import read_weights
from shared.settings import Settings


@pytest.fixture
def cli(monkeypatch, line, tmp_path):
    monkeypatch.setattr(recipe, "recipes", lambda: {"line": line})
    monkeypatch.setattr(training_cli, "settings", lambda: Settings(data_dir=tmp_path / "data"))
    app = CommandApp()
    app.command("train")(training_cli.train)
    app.command("import")(training_cli.import_checkpoint)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def test_recipes_of_every_service_are_found_by_scan():
    found = recipes()
    assert list(found) == sorted(found)
    for name, kind in found.items():
        assert kind.name == name
        assert kind.weights
        assert (kind.__doc__ or "").strip()


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(NotFound, match="pranet-demo"):
        recipe_named("soup")


def test_knobs_are_set_by_name_and_dots_reach_into_groups(line):
    chosen = configure_recipe(line, ["seed=7", "schedule.steps=5", "schedule.clamp=0.25"])
    assert (chosen.seed, chosen.schedule.steps, chosen.schedule.clamp) == (7, 5, 0.25)
    assert chosen.schedule.rate == line().schedule.rate


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("seed", "name=value"),
        ("seed=x", "seed"),
        ("flavour=1", "flavour"),
        ("soup.x=1", "soup"),
        ("schedule.steps=0", r"schedule\.steps"),
        ("schedule.soup=0", r"schedule\.soup"),
    ],
)
def test_a_wrong_knob_is_told_by_its_name(line, assignment, told):
    with pytest.raises(InvalidOption, match=told):
        configure_recipe(line, [assignment])


def test_published_weights_are_those_that_were_measured(line, tmp_path):
    fitted = fit(line(), tmp_path)
    manifest = publish(line(), fitted, tmp_path / "out")
    found = read_weights(tmp_path / "out" / "line.safetensors")
    net = line().network()
    net.load_state_dict({key: torch.from_numpy(array) for key, array in found.arrays.items()})
    assert manifest.metrics == {"error": round(line().measure(net.eval())["error"], 5)}
    assert found.arrays["layer.weight"] == found.arrays["layer.weight"].astype(np.float16)


def test_a_manifest_says_how_to_make_the_weights_again(line, tmp_path):
    publish(line(seed=4), fit(line(seed=4), tmp_path), tmp_path / "out", notes={"ablation": {"error": 2.0}})
    told = json.loads((tmp_path / "out" / "line.json").read_text())
    assert (told["recipe"]["name"], told["recipe"]["seed"]) == ("line", 4)
    assert told["recipe"]["schedule"]["steps"] == 60
    assert told["network"] == {"name": "line", "config": {"width": 1}}
    assert told["data"] == {"digest": "line shifted by -1.0", "description": "points on a line"}
    assert told["code"]["torch"] == torch.__version__.partition("+")[0] or told["code"]["torch"] == torch.__version__
    assert (told["notes"]["steps"], told["notes"]["ablation"], told["parameters"]) == (60, {"error": 2.0}, 4)


def test_train_without_a_name_lists_recipes(cli):
    result = cli("train")
    assert result.exit_code == 0
    assert "line" in result.output
    assert "Fits y = 3x - 1." in result.output


def test_train_writes_weights_and_says_what_they_reach(cli, tmp_path):
    result = cli("train", "line", "--out", tmp_path / "out", "--set", "schedule.steps=40", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "error" in result.output
    assert (tmp_path / "out" / "line.safetensors").exists()
    assert (tmp_path / "data" / "training" / "line" / "last.safetensors").exists()


def test_verbs_load_no_torch_until_they_run():
    import subprocess
    import sys

    code = "import sys, fovea_recipes.training.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
