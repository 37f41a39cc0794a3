"""`fovea actions`, `fovea scanpath` and `fovea plan`: short for `fovea run TASK`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fovea.cli.commands.run import run
from fovea.cli.option_groups import declare_parameters


def _make_alias(task: str, help_text: str) -> Callable[..., None]:
    """Make a command that runs one task; its options are those of `run` and of the served model."""

    def command(**options: Any) -> None:
        run(task=task, **options)

    command.__name__, command.__doc__ = task, help_text
    shared = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.name != "task"]
    return declare_parameters(command, shared)


actions = _make_alias("actions", "Find actions in a video. FILE holds its features (.npz or .npy).")
scanpath = _make_alias("scanpath", "Predict where people look. FILE is a picture of a shelf.")
plan = _make_alias("plan", "Plan over points: their hull, triangulation or shortest tour.")
