"""The commands of the plug-in, the options that they read from schemas, and the figures of its Cards."""

import pytest
from typer.testing import CliRunner

from fovea.api.model import HeadlineMetric
from fovea.cli import main
from fovea.cli.schema_options import list_picture_fields
from fovea_planning.models.oat import OatScanpathPredictor
from fovea_planning.models.planner import FoveaPlanner
from fovea_planning.plan_schema import PlanIn
from fovea_planning.scanpath_schema import ScanpathIn


@pytest.mark.parametrize("task", ["plan", "scanpath"])
def test_commands_are_those_of_the_command_line(task):
    assert f"fovea {task}" in " ".join(CliRunner().invoke(main.app, [task, "--help"], prog_name="fovea").stdout.split())


def test_pictures_of_scanpaths_are_found_and_plans_take_none():
    assert list_picture_fields(PlanIn.model_json_schema()) == []
    assert list_picture_fields(ScanpathIn.model_json_schema())[0] == "image"


@pytest.mark.parametrize("kind", [FoveaPlanner, OatScanpathPredictor])
def test_every_figure_on_made_data_is_called_synthetic(kind):
    figures = [HeadlineMetric(each.name, 0.5, None, each.data) for each in kind.card.metrics if each.ours is not None]
    assert figures
    assert [each.name for each in figures if not each.is_synthetic] == []
