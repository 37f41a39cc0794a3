"""Plug-in commands: entry points of group `fovea.commands`, loaded only when they are invoked.

`fovea --help` shows their names and first lines, which are read from the source without importing it. The extras of
an entry point (`up = "shared.serving.up.launch:up [serving]"`) say what to install when a command can't be loaded.
"""

import ast
import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from fovea.cli.option_groups import CommandApp, expand_options
from fovea.errors import Fault, NotReady
from fovea.plugins import entries, explain_missing, load, owner

GROUP = "fovea.commands"
"""Entry-point group; a value is a `typer.Typer` or a function."""


class PluginGroup(TyperGroup):
    """The commands of an app and of every plug-in.

    Class attributes:
        parent: The command that these belong to, as in `judge.rankings`; empty for those of `fovea` itself.
    """

    parent: ClassVar[str] = ""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        named = ((*point.name.rpartition("."), point) for point in entries(GROUP))
        self._plugins = {n: p for parent, _, n, p in named if parent == self.parent and n not in self.commands}
        for name, point in self._plugins.items():
            panel = "On this machine" if owner(point) == "fovea-platform" else "Plug-ins"
            self.add_command(TyperCommand(name, help=read_first_line(point), rich_help_panel=panel))

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # typer's own context
        """Find the invoked command; a plug-in is loaded here.

        Raises NotFound: a known plug-in brings the command and is not installed.
        """
        name = args[0]
        point = self._plugins.get(name)
        if point is None:
            whole = f"{self.parent}.{name}".lstrip(".")
            what = f"The command {whole.replace('.', ' ')!r}"
            missing = None if name in self.commands else explain_missing("commands", whole, what)
            if missing is not None:
                raise missing
            return super().resolve_command(ctx, args)
        return name, load_plugin(point), args[1:]


def load_plugin(point: EntryPoint) -> Any:
    """Load the command of an entry point.

    Raises NotReady: a library that it needs is not installed; the hint says how to install it; Fault: it is broken.
    """
    try:
        value = load(point)
    except Fault as fault:
        missing, own = fault.__cause__, point.module.partition(".")[0]
        if not isinstance(missing, ModuleNotFoundError) or str(missing.name).partition(".")[0] == own:
            raise
        package = f"fovea-platform[{','.join(point.extras)}]" if point.extras else owner(point)
        detail = f"`fovea {point.name.replace('.', ' ')}` needs the library {missing.name!r}, which is not installed."
        raise NotReady(detail, hint=f"Try: pip install '{package}'") from missing
    if isinstance(value, typer.Typer):
        for info in value.registered_commands:
            info.callback = info.callback and expand_options(info.callback)
        return get_command(value)
    app = CommandApp(add_completion=False)
    app.command(point.name)(value)
    return get_command(app)


def read_first_line(point: EntryPoint) -> str:
    """Read the first line of a plug-in's docstring from its source; empty when there is none."""
    file = _find_source(point.module)
    try:
        tree = ast.parse(file.read_text("utf8") if file else "")
    except (SyntaxError, ValueError):  # the command itself says what is wrong
        return ""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    texts = (ast.get_docstring(node) for node in functions if node.name == point.attr)
    text = next(filter(None, texts), ast.get_docstring(tree))
    return (text or "").partition("\n")[0]


def _find_source(module: str) -> Path | None:
    """Find the file of a module. Only its top package is looked up, because that imports nothing."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    places = [Path(place, *rest) for place in (spec.submodule_search_locations or ())] if spec else []
    files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return next(filter(Path.is_file, files), None)
