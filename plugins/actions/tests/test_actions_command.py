"""The command of the plug-in, and the files that it reads from the schema."""

from typer.testing import CliRunner

from fovea.cli import main
from fovea.cli.schema_options import list_picture_fields
from fovea_actions.schema import ActionsIn


def test_the_command_takes_the_files_of_the_request():
    assert "FILE holds its features" in CliRunner().invoke(main.app, ["actions", "--help"]).stdout
    assert list_picture_fields(ActionsIn.model_json_schema()) == ["features", "semantics", "class_scores"]
