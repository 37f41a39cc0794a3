"""`fovea actions · scanpath · plan` are `fovea run` with the task fixed."""

import pytest

from fovea.cli.commands import task_aliases
from fovea.cli.schema_options import list_picture_fields
from shared.api.actions import ActionsIn
from shared.api.plan import PlanIn
from shared.api.scanpath import ScanpathIn


@pytest.mark.parametrize("task", ["actions", "scanpath", "plan"])
def test_a_deed_runs_its_task(task, monkeypatch):
    told = []
    monkeypatch.setattr(task_aliases, "run", lambda *given, **more: told.append((given, more)))
    getattr(task_aliases, task)(words=["a.npz"], model=None)
    assert told == [((task,), {"words": ["a.npz"], "model": None})]
    assert getattr(task_aliases, task).__doc__


def test_files_go_into_arrays_and_pictures_and_nowhere_else():
    assert list_picture_fields(ActionsIn.model_json_schema()) == ["features", "semantics", "class_scores"]
    assert list_picture_fields(ScanpathIn.model_json_schema())[0] == "image"
    assert list_picture_fields(PlanIn.model_json_schema()) == []
