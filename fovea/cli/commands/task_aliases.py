"""Short forms of `fovea run TASK`, such as `fovea plan`, for plug-ins."""

from __future__ import annotations

import inspect
from typing import Any

from fovea.cli.commands.run import run
from fovea.cli.option_groups import CommandApp, declare_parameters

MODEL_OPTIONS = {"ignore_unknown_options": True}
"""Typer keeps options that it does not know, which are the served model's, among the arguments."""


def make_task_app(task: str, help_text: str) -> CommandApp:
    """Make an app of one command, which runs one task; its options are those of `run` and of the served model."""

    def command(**options: Any) -> None:
        run(task=task, **options)

    command.__name__, command.__doc__ = task, help_text
    shared = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.name != "task"]
    app = CommandApp(add_completion=False)
    app.command(task, no_args_is_help=True, context_settings=MODEL_OPTIONS)(declare_parameters(command, shared))
    return app
