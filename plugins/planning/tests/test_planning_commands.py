"""The commands of the plug-in, the options that they read from schemas, and the figures of its Cards."""

import importlib

import pytest
from typer.testing import CliRunner

from fovea.cli import main
from fovea.cli.schema_options import list_picture_fields
from fovea.headline_metric import HeadlineMetric
from fovea_planning.models.oat import OatScanpathPredictor
from fovea_planning.models.planner import FoveaPlanner
from fovea_planning.plan_schema import PlanIn
from fovea_planning.scanpath_schema import ScanpathIn


@pytest.mark.parametrize("task", ["plan", "scanpath"])
def test_commands_run_their_task_with_the_options_of_the_model(task, monkeypatch):
    importlib.import_module(f"fovea_planning.{task}_command")  # reads the parameters of `run`
    told = []
    monkeypatch.setattr("fovea.cli.commands.task_aliases.run", lambda **given: told.append(given))
    found = CliRunner().invoke(main.app, [task, "a.png", "--solver", "exact", "--model", "m"])
    assert found.exit_code == 0, found.output
    assert (told[0]["task"], told[0]["model"]) == (task, "m")
    assert told[0]["arguments"] == ["a.png", "--solver", "exact"]


def test_pictures_of_scanpaths_are_found_and_plans_take_none():
    assert list_picture_fields(PlanIn.model_json_schema()) == []
    assert list_picture_fields(ScanpathIn.model_json_schema())[0] == "image"


@pytest.mark.parametrize("kind", [FoveaPlanner, OatScanpathPredictor])
def test_every_figure_on_made_data_is_called_synthetic(kind):
    figures = [HeadlineMetric(each.name, 0.5, None, each.data) for each in kind.card.metrics if each.ours is not None]
    assert figures
    assert [each.name for each in figures if not each.is_synthetic] == []
