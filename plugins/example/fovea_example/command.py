"""A command that asks the gateway for the plug-in's task."""

import json
from typing import Annotated

import typer

from fovea.cli.common_options import Connection


def count_words(text: Annotated[str, typer.Argument(help="A text.")], *, gateway: Connection) -> None:
    """Count the words of a text."""
    with gateway.open() as client:
        typer.echo(json.dumps(client.run("count-words", {"text": text})["words"]))
