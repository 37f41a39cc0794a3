"""The command of the plug-in, the files that it reads from the schema, and the figures of its Cards."""

import pytest
from typer.testing import CliRunner

from fovea.api.model import HeadlineMetric
from fovea.cli import main
from fovea.cli.schema_options import list_picture_fields
from fovea_actions.models.bmn import BmnActionDetector, BmnCsaActionDetector
from fovea_actions.schema import ActionsIn


def test_the_command_takes_the_files_of_the_request():
    assert "FILE holds its features" in CliRunner().invoke(main.app, ["actions", "--help"]).stdout
    assert list_picture_fields(ActionsIn.model_json_schema()) == ["features", "semantics", "class_scores"]


@pytest.mark.parametrize("kind", [BmnActionDetector, BmnCsaActionDetector])
def test_every_figure_on_made_data_is_called_synthetic(kind):
    figures = [HeadlineMetric(each.name, 0.5, None, each.data) for each in kind.card.metrics if each.ours is not None]
    assert figures
    assert [each.name for each in figures if not each.is_synthetic] == []
