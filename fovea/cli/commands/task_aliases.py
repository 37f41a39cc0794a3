"""Short forms of `fovea run TASK`: `fovea actions`, and those of plug-ins, which call `make_task_app`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fovea.cli.commands.run import run
from fovea.cli.option_groups import CommandApp, declare_parameters

MODEL_OPTIONS = {"ignore_unknown_options": True}
"""Typer keeps options that it does not know, which are the served model's, among the arguments."""


def make_task_app(task: str, help_text: str) -> CommandApp:
    """Make an app of one command, which runs one task; its options are those of `run` and of the served model."""
    app = CommandApp(add_completion=False)
    app.command(task, no_args_is_help=True, context_settings=MODEL_OPTIONS)(make_task_command(task, help_text))
    return app


def make_task_command(task: str, help_text: str) -> Callable[..., None]:
    """Make a command that runs one task."""

    def command(**options: Any) -> None:
        run(task=task, **options)

    command.__name__, command.__doc__ = task, help_text
    shared = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.name != "task"]
    return declare_parameters(command, shared)


actions = make_task_command("actions", "Find actions in a video. FILE holds its features (.npz or .npy).")
