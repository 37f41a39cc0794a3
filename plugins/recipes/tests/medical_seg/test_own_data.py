"""docs/09-your-own-data.md, done: from a folder of frames and masks to an answer over HTTP, by the command it names."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fovea_recipes.training.cli import train
from plugins.recipes.tests.medical_seg.test_pranet_lite import frames
from shared.serving.build_app import build
from shared.serving.tests.ready_client import ready_client
from shared.settings import Settings, settings

DOC = Path(__file__).parents[4] / "docs" / "09-your-own-data.md"
cli = typer.Typer()
cli.command()(train)

SHORT = ("schedule.steps=2", "schedule.batch=4", "schedule.validate_every=2", "choose=4", "scale.side=96")


def command() -> list[str]:
    (line,) = re.findall(r"^fovea train pranet .*$", DOC.read_text(), re.MULTILINE)
    return shlex.split(line)[2:]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder with the frames of the document in it, and nothing served yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path / "fovea"))
    settings.cache_clear()
    frames(tmp_path / "discs", 20)
    yield tmp_path
    settings.cache_clear()


def test_a_folder_becomes_a_served_model(home):
    args = [*command(), *(part for knob in SHORT for part in ("--set", knob))]
    ran = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "17 pictures to train on, 3 held out" in ran.output
    assert "dice_at_half" in ran.output
    frame = (home / "discs" / "images" / "01.png").read_bytes()
    with ready_client(build("medical-seg", settings=Settings())) as client:
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert {"pranet", "my-discs"} <= listed.keys()
        answer = client.post("/v1/segment", params={"model": "my-discs"}, files={"image": frame})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "my-discs"
        card = client.get("/v1/models/my-discs").json()
        (dice,) = [metric for metric in card["metrics"] if metric["name"] == "dice_at_half"]
        assert dice["data"] == "the folder discs (real), 3 held-out pictures"
        assert "95 % interval" in dice["note"]


def test_a_run_that_was_stopped_leaves_nothing_to_serve(home):
    args = [*command(), "--set", "schedule.rate=1e30", *(part for knob in SHORT[:-1] for part in ("--set", knob))]
    args += ["--set", "schedule.warm_up=0", "--set", "schedule.steps=6", "--set", "scale.side=64"]
    ran = CliRunner().invoke(cli, args)
    assert ran.exit_code != 0
    assert not list((home / "fovea").rglob("my-discs.safetensors"))
