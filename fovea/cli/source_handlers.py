"""Sources of a task command that are not pictures, such as studies: handlers come from plug-ins (`fovea.sources`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from typer.core import TyperCommand

from fovea.cli.common_options import Connection
from fovea.cli.output import Screen
from fovea.cli.plugins import read_first_line
from fovea.cli.schema_options import split_arguments
from fovea.plugins import entries, load_all

GROUP = "fovea.sources"
"""Entry-point group; a name begins with the command, a value is a `SourceHandler`, which may be a module."""


class SourceHandler(Protocol):
    """Answers sources of one kind instead of the command itself."""

    def accepts(self, source: str) -> bool:
        """Whether a source, as the user wrote it, is of this kind."""

    def run(
        self, sources: Sequence[str], options: Mapping[str, Any], output: Path, screen: Screen, connection: Connection
    ) -> None:
        """Answer these sources and write the results to a folder."""


def handle_sources(
    command: str, sources: Sequence[str], options: Mapping[str, Any], output: Path, screen: Screen, gateway: Connection
) -> list[str]:
    """Give each source to the first handler that accepts it, with all options; return what is left of the sources.

    Options that the command does not declare are among the sources: a model's own, and those of handlers.
    """
    plain, texts = split_arguments(sources, {})
    rest = plain
    handlers: Mapping[str, SourceHandler] = load_all(GROUP, command, working=True)
    for handler in handlers.values():
        own = [source for source in rest if handler.accepts(source)]
        rest = [source for source in rest if source not in own]
        if own:
            handler.run(own, {**options, **dict(texts)}, output, screen, gateway)
    return [source for source in sources if source not in plain or source in rest] if rest or not plain else []


class SourcesCommand(TyperCommand):
    """A command whose help ends with the first line of each handler's description."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with what is installed now."""
        self.epilog = "\n\n".join(read_first_line(point) for point in entries(GROUP, self.name))
        super().format_help(ctx, formatter)
