"""Sessions of models with a memory: open, list, fork, export, import, roll back, delete."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea import sessions_documents
from fovea.api.sessions import Deleted, Session
from fovea.cli.common_options import Connection, GatewayOptions, Model
from fovea.cli.option_groups import CommandApp
from fovea.cli.output import Screen, format_age

app = CommandApp(
    help="Sessions of models with a memory: open, list, fork, export, import, roll back, delete.",
    no_args_is_help=True,
    add_completion=False,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As printed by open.")]


@app.command("open")
def open_(model: Model = None, *, gateway: GatewayOptions) -> None:
    """Open a session; use it with `fovea chat --session ID`."""
    _print(gateway.screen, gateway.send(sessions_documents.open_session(model)))


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most sessions to list.")] = 100,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="List those after this one.", show_default=False)
    ] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """List sessions, newest first."""
    screen, found = gateway.screen, gateway.send(sessions_documents.sessions(limit, after))
    if screen.wrote(*found.data):
        return
    if not found.data:
        screen.note("No sessions. `fovea sessions open` opens one.")
        return
    rows = (
        (s.id, s.model, str(s.version), str(s.tokens), f"{s.state_bytes:,}", f"{format_age(s.updated)} ago")
        for s in found.data
    )
    screen.table(("session", "model", "version", "tokens", "bytes", "last used"), rows, head=False)
    if found.has_more:
        screen.note(f"There are more: --after {escape(found.data[-1].id)}")


@app.command()
def show(session: Id, *, gateway: GatewayOptions) -> None:
    """Show a session."""
    _print(gateway.screen, gateway.send(sessions_documents.session(session)))


@app.command()
def fork(session: Id, *, gateway: GatewayOptions) -> None:
    """Open a new session with a copy of another's memory."""
    _print(gateway.screen, gateway.send(sessions_documents.fork(session)))


@app.command()
def rollback(
    session: Id,
    version: Annotated[int, typer.Argument(min=0, help="One of the kept versions.")],
    *,
    gateway: GatewayOptions,
) -> None:
    """Go back to an earlier version, which becomes the newest."""
    _print(gateway.screen, gateway.send(sessions_documents.rollback(session, version)))


@app.command("export")
def export(
    session: Id,
    output: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="File to write the state to.")],
    *,
    gateway: Connection,
) -> None:
    """Export the memory of a session to a file."""
    state = gateway.send(sessions_documents.export_state(session))
    output.write_bytes(state)
    Screen().note(f"{len(state):,} bytes → {escape(str(output))}")


@app.command("import")
def load(
    session: Id,
    state: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file that export wrote.")
    ],
    *,
    gateway: GatewayOptions,
) -> None:
    """Import the memory of a session from a file."""
    _print(gateway.screen, gateway.send(sessions_documents.import_state(session, state.read_bytes())))


@app.command()
def surprise(
    session: Id,
    version: Annotated[
        int | None, typer.Option(min=0, help="Version; default: the newest.", show_default=False)
    ] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Show how much each token of the last request surprised the model and changed its memory."""
    screen, trace = gateway.screen, gateway.send(sessions_documents.surprise(session, version))
    if screen.wrote(trace):
        return
    rows = (
        (escape(t.text.strip() or "␣"), f"{t.loss:.3f}", f"{t.rate:.4f}", f"{t.forgotten:.4f}") for t in trace.tokens
    )
    screen.table(("token", "surprise", "learnt at", "forgotten"), rows)


@app.command()
def delete(session: Id, *, gateway: GatewayOptions) -> None:
    """Delete a session: its memory, its versions and its answers."""
    print_deleted(gateway.screen, gateway.send(sessions_documents.delete_session(session)))


def print_deleted(screen: Screen, answer: Deleted) -> None:
    """Say that something is gone."""
    if not screen.wrote(answer):
        screen.note(f"Deleted {escape(answer.id)}.")


def _print(screen: Screen, session: Session) -> None:
    if screen.wrote(session):
        return
    screen.facts(
        {
            "session": session.id,
            "model": session.model,
            "version": session.version,
            "can go back to": ", ".join(map(str, session.versions)),
            "tokens read": session.tokens,
            "remembers": f"{session.state_bytes:,} bytes",
        }
    )
