"""Verbs of other rooms: entry points of group `fovea.verbs`, loaded when they are invoked and not before.

`fovea --help` shows their names and first lines, which are read from the source without importing it. The extras of
an entry point (`up = "shared.serving.up.launch:up [serving]"`) say what to install when a verb can't be loaded.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from shared.errors import FoveaError, NotReady

__all__ = ["GROUP", "PluginGroup"]

GROUP = "fovea.verbs"
"""Entry-point group; a value is a `typer.Typer` or a function."""


class PluginGroup(TyperGroup):
    """The commands of an app, and one more for every plug-in."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._plugins = {point.name: point for point in entry_points(group=GROUP) if point.name not in self.commands}
        for name, point in sorted(self._plugins.items()):
            self.add_command(TyperCommand(name, help=read_first_line(point), rich_help_panel="On this machine"))

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # typer's own context
        """The command that is invoked; a plug-in is loaded here."""
        point = self._plugins.get(args[0])
        if point is None:
            return super().resolve_command(ctx, args)
        return point.name, load_plugin(point), args[1:]


def load_plugin(point: EntryPoint) -> Any:
    """The command behind an entry point.

    Raises:
        NotReady: A library that it needs is not installed; the hint says how to get it.
    """
    try:
        value = point.load()
    except ModuleNotFoundError as error:
        raise build_missing_error(point, error) from error
    if isinstance(value, typer.Typer):
        return get_command(value)
    app = typer.Typer(add_completion=False)
    app.command(point.name)(value)
    return get_command(app)


def build_missing_error(point: EntryPoint, error: ModuleNotFoundError) -> FoveaError:
    """What a user is told when a verb can't be loaded."""
    extras = f"fovea[{','.join(point.extras)}]" if point.extras else "fovea[all]"
    detail = f"`fovea {point.name}` needs the library {error.name!r}, which is not installed."
    return NotReady(detail, hint=f"Try: pip install '{extras}'")


def read_first_line(point: EntryPoint) -> str:
    """The first line of what a plug-in's source says about it; empty when there is none to read."""
    file = _source(point.module)
    if file is None:
        return ""
    tree = ast.parse(file.read_text("utf8"))
    named = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == point.attr
    )
    text = next((found for node in named if (found := ast.get_docstring(node))), ast.get_docstring(tree))
    return (text or "").partition("\n")[0]


def _source(module: str) -> Path | None:
    """The file of a module. Only its top package is looked up, because that alone imports nothing."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        base = Path(place, *rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None
