"""`fovea actions`, `fovea scanpath` and `fovea plan`: short for `fovea run TASK`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from fovea.cli.commands.run import CONTEXT_SETTINGS, run

__all__ = ["CONTEXT_SETTINGS", "actions", "plan", "scanpath"]


def _make_alias(task: str, help_text: str) -> Callable[..., None]:
    """Make a command that runs one task; its options are those of `run` and of the served model."""

    def command(**options: Any) -> None:
        run(task=task, **options)

    types = {name: kind for name, kind in get_type_hints(run, include_extras=True).items() if name != "task"}
    known = inspect.signature(run).parameters
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
        [
            known[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=types[name])
            for name in known
            if name in types
        ]
    )
    command.__annotations__ = types
    command.__name__, command.__doc__ = task, help_text
    return command


actions = _make_alias(
    "actions",
    "Find actions in a video. FILE holds its features (.npz or .npy).",
)
scanpath = _make_alias(
    "scanpath",
    "Predict where people look. FILE is a picture of a shelf.",
)
plan = _make_alias("plan", "Plan over points: their hull, triangulation or shortest tour.")
