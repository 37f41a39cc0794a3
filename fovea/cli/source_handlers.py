"""Sources of a task command that are not pictures, such as studies: handlers come from plug-ins (`fovea.sources`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from typer.core import TyperCommand

from fovea.cli.common_options import Connection
from fovea.cli.output import Screen
from fovea.cli.plugins import read_first_line
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
    """Give each source to the first handler that accepts it; return the sources that none accepts."""
    rest = list(sources)
    handlers: list[SourceHandler] = list(load_all(GROUP, command).values())
    for handler in handlers:
        own = [source for source in rest if handler.accepts(source)]
        rest = [source for source in rest if source not in own]
        if own:
            handler.run(own, options, output, screen, gateway)
    return rest


class SourcesCommand(TyperCommand):
    """A command whose help ends with the first line of each handler's description."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with what is installed now."""
        self.epilog = "\n\n".join(read_first_line(point) for point in entries(GROUP, self.name))
        super().format_help(ctx, formatter)
