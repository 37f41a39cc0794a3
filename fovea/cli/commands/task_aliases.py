"""`fovea actions · scanpath · plan`: the tasks of sequences and points by their own names. Each is `fovea run TASK`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from fovea.cli.commands.run import CONTEXT_SETTINGS, run

__all__ = ["CONTEXT_SETTINGS", "actions", "plan", "scanpath"]


def _deed(task: str, what: str) -> Callable[..., None]:
    """`run` with its task fixed; the options stay those of `run` and of the served model."""

    def verb(**given: Any) -> None:
        run(task, **given)

    types = {name: kind for name, kind in get_type_hints(run, include_extras=True).items() if name != "task"}
    known = inspect.signature(run).parameters
    verb.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
        [
            known[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=types[name])
            for name in known
            if name in types
        ]
    )
    verb.__annotations__ = types
    verb.__name__, verb.__doc__ = task, what
    return verb


actions = _deed(
    "actions",
    "Find segments in a video: FILE is .npz or .npy with its features, then for example --duration 90 --model bmn-csa.",
)
scanpath = _deed(
    "scanpath", "Predict where people look: FILE is the shelf; --target ID, and --objects with boxes as JSON."
)
plan = _deed("plan", "Plan over points: --task hull, delaunay or tsp, and --points as JSON.")
