"""Options that all commands share: the gateway's address and key, the model, JSON output."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from fovea.async_client import AsyncClient
from fovea.call import Answer, Call
from fovea.cli.output import Screen
from fovea.client import Client
from fovea.transport import LOCAL

_PANEL = "Gateway"

Url = Annotated[str, typer.Option("--url", envvar="FOVEA_URL", help="Address of the gateway.", rich_help_panel=_PANEL)]
Key = Annotated[str | None, typer.Option("--key", envvar="FOVEA_API_KEY", help="API key.", rich_help_panel=_PANEL)]
AsJson = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Form = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORM",
        help="table, tsv, csv, json, name, or a template such as '{id} {status}'. Default: table; in a pipe tsv.",
    ),
]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="File to write to; default: standard output.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model; default: the task's own default.")]


@dataclass(frozen=True, slots=True)
class Connection:
    """The gateway that a command talks to; opens clients. A group of options (`expand_options`)."""

    url: Url = LOCAL
    key: Key = field(default=None, repr=False)

    def open(self) -> Client:
        """Open a synchronous client."""
        return Client(self.url, key=self.key)

    def send(self, call: Call[Answer]) -> Answer:
        """Send a single call."""
        with self.open() as client:
            return client.send(call)

    def open_async(self) -> AsyncClient:
        """Open an asynchronous client."""
        return AsyncClient(self.url, key=self.key)


@dataclass(frozen=True, slots=True)
class GatewayOptions(Connection):
    """The gateway that a command talks to, and how it writes what it was answered. A group of options."""

    json_lines: AsJson = False
    form: Form = None

    @property
    def screen(self) -> Screen:
        """Where the command writes."""
        return Screen(self.form, as_json=self.json_lines)
