"""The commands of the plug-in, and the options that they read from schemas."""

import pytest
from typer.testing import CliRunner

from fovea.cli import main
from fovea.cli.schema_options import list_picture_fields
from fovea_planning.plan_schema import PlanIn
from fovea_planning.scanpath_schema import ScanpathIn


@pytest.mark.parametrize("task", ["plan", "scanpath"])
def test_commands_are_those_of_the_command_line(task):
    assert f"fovea {task}" in " ".join(CliRunner().invoke(main.app, [task, "--help"], prog_name="fovea").stdout.split())


def test_pictures_of_scanpaths_are_found_and_plans_take_none():
    assert list_picture_fields(PlanIn.model_json_schema()) == []
    assert list_picture_fields(ScanpathIn.model_json_schema())[0] == "image"
