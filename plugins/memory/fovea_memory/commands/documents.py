"""Documents that a model reads once: add, list, show, delete."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea import sessions_documents
from fovea.api.sessions import DocumentInfo
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.option_groups import CommandApp
from fovea.cli.output import Screen
from fovea.cli.text_files import read_text
from fovea_memory.commands.sessions import print_deleted

app = CommandApp(
    help="Documents that a model reads once: add, list, show, delete.", no_args_is_help=True, add_completion=False
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As printed by add.")]


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A text file in UTF-8.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the document; default: the file's name.", show_default=False)
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(min=1, help="Number of blocks that a query retrieves.", show_default=False)
    ] = None,
    model: Model = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Add a text; ask about it with `fovea chat --document ID`."""
    knobs = None if blocks is None else {"blocks": blocks}
    call = sessions_documents.store_document(read_text(file), model=model, name=name or file.name, longctx=knobs)
    _print(gateway.screen, gateway.send(call))


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most documents to list.")] = 100,
    *,
    gateway: GatewayOptions,
) -> None:
    """List documents, newest first."""
    screen, found = gateway.screen, gateway.send(sessions_documents.documents(limit))
    if screen.wrote(*found):
        return
    if not found:
        screen.note("No documents. `fovea documents add FILE` adds one.")
    else:
        rows = ((d.id, escape(d.name or "–"), d.model, str(d.tokens), str(d.blocks)) for d in found)
        screen.table(("id", "name", "model", "tokens", "blocks"), rows, head=False)


@app.command()
def show(document: Id, *, gateway: GatewayOptions) -> None:
    """Show a document and its text."""
    screen, found = gateway.screen, gateway.send(sessions_documents.document(document))
    _print(screen, found)
    if not screen.as_json:
        screen.text(found.text)


@app.command()
def delete(document: Id, *, gateway: GatewayOptions) -> None:
    """Delete a document."""
    print_deleted(gateway.screen, gateway.send(sessions_documents.delete_document(document)))


def _print(screen: Screen, document: DocumentInfo) -> None:
    if screen.wrote(document):
        return
    screen.facts(
        {
            "document": document.id,
            "name": document.name,
            "model": document.model,
            "tokens": f"{document.tokens:,} in {document.blocks:,} blocks",
            "read before": document.cached_tokens or None,
            "replicas": "read it again: its blocks are not kept for them" if document.shared is False else None,
        }
    )
