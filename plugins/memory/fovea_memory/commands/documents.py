"""Documents that a model reads once: add, list, show, delete."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea import sessions_documents
from fovea.api.sessions import DocumentInfo
from fovea.cli.common_options import AsJson, Connection, Key, Model, Url
from fovea.cli.output import Screen
from fovea.transport import LOCAL
from fovea_memory.commands.sessions import print_deleted

app = typer.Typer(
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
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Add a text; ask about it with `fovea chat --document ID`."""
    knobs = None if blocks is None else {"blocks": blocks}
    call = sessions_documents.store_document(
        file.read_text("utf-8"), model=model, name=name or file.name, longctx=knobs
    )
    screen = Screen(as_json=as_json)
    with Connection(url, key).open() as client:
        _print(screen, client.send(call))


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most documents to list.")] = 100,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List documents, newest first."""
    screen = Screen(as_json=as_json)
    with Connection(url, key).open() as client:
        found = client.send(sessions_documents.documents(limit))
    if as_json:
        for one in found:
            screen.line(one)
    elif not found:
        screen.note("No documents. `fovea documents add FILE` adds one.")
    else:
        rows = ((d.id, escape(d.name or "–"), d.model, str(d.tokens), str(d.blocks)) for d in found)
        screen.table(("id", "name", "model", "tokens", "blocks"), rows, head=False)


@app.command()
def show(document: Id, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Show a document and its text."""
    screen = Screen(as_json=as_json)
    with Connection(url, key).open() as client:
        found = client.send(sessions_documents.document(document))
    _print(screen, found)
    if not as_json:
        screen.text(found.text)


@app.command()
def delete(document: Id, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Delete a document."""
    print_deleted(sessions_documents.delete_document(document), as_json=as_json, url=url, key=key)


def _print(screen: Screen, document: DocumentInfo) -> None:
    if screen.as_json:
        screen.line(document)
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
