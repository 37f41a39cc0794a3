"""`fovea sessions …`: what a model with a memory remembers of a conversation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea import sessions_documents
from fovea.call import Call
from fovea.cli.common_options import AsJson, Key, Model, Url
from fovea.cli.common_options import Connection as Gateway
from fovea.cli.output import Screen
from fovea.transport import LOCAL
from shared.api.sessions import Session

__all__ = ["app"]

app = typer.Typer(
    help="Sessions of models with a memory: open, list, fork, move, roll back, forget.", no_args_is_help=True
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As printed by open.")]


@app.command("open")
def open_(model: Model = None, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Open a session; go on with `fovea chat --session ID`."""
    _show(sessions_documents.open_session(model), as_json=as_json, url=url, key=key)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Go on behind this one.", show_default=False)] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List sessions, newest first."""
    screen = Screen(as_json=as_json)
    with Gateway(url, key).client() as client:
        found = client.send(sessions_documents.sessions(limit, after))
    if as_json:
        for one in found.data:
            screen.line(one)
        return
    if not found.data:
        screen.note("No sessions. `fovea sessions open` opens one.")
        return
    rows = ((s.id, s.model, str(s.version), str(s.tokens), f"{s.state_bytes:,}", _age(s.updated)) for s in found.data)
    screen.table(("session", "model", "version", "tokens", "bytes", "last used"), rows)
    if found.has_more:
        screen.note(f"There are more: --after {escape(found.data[-1].id)}")


@app.command()
def show(session: Id, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Show what is known of a session."""
    _show(sessions_documents.session(session), as_json=as_json, url=url, key=key)


@app.command()
def fork(session: Id, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Open a session that goes on from another's memory."""
    _show(sessions_documents.fork(session), as_json=as_json, url=url, key=key)


@app.command()
def rollback(
    session: Id,
    version: Annotated[int, typer.Argument(min=0, help="One of the versions that are kept.")],
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Go back to an earlier version, which becomes the newest."""
    _show(sessions_documents.rollback(session, version), as_json=as_json, url=url, key=key)


@app.command("export")
def export(
    session: Id,
    output: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Write the state here.")],
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Write what a session remembers to a file."""
    with Gateway(url, key).client() as client:
        state = client.send(sessions_documents.export_state(session))
    output.write_bytes(state)
    Screen().note(f"{len(state):,} bytes → {escape(str(output))}")


@app.command("import")
def load(
    session: Id,
    state: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What export wrote.")],
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Let a session go on from a file."""
    _show(sessions_documents.import_state(session, state.read_bytes()), as_json=as_json, url=url, key=key)


@app.command()
def surprise(
    session: Id,
    version: Annotated[int | None, typer.Option(min=0, help="The newest otherwise.", show_default=False)] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show what the last request taught the memory, token by token."""
    screen = Screen(as_json=as_json)
    with Gateway(url, key).client() as client:
        trace = client.send(sessions_documents.surprise(session, version))
    if as_json:
        screen.line(trace)
        return
    rows = (
        (escape(t.text.strip() or "␣"), f"{t.loss:.3f}", f"{t.rate:.4f}", f"{t.forgotten:.4f}") for t in trace.tokens
    )
    screen.table(("token", "surprise", "learnt at", "forgotten"), rows)


@app.command()
def delete(session: Id, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Forget a session: its memory, its versions and its answers."""
    _tell(sessions_documents.delete_session(session), as_json=as_json, url=url, key=key)


def _age(at: int) -> str:
    """How long ago a Unix time was."""
    ago = max(0, int(time.time()) - at)
    unit, size = next(((u, s) for u, s in (("d", 86_400), ("h", 3_600), ("min", 60)) if ago >= s), ("s", 1))
    return f"{ago // size} {unit} ago"


def _tell(call: Call[Any], *, as_json: bool, url: str, key: str | None) -> None:
    screen = Screen(as_json=as_json)
    with Gateway(url, key).client() as client:
        answer = client.send(call)
    if as_json:
        screen.line(answer)
    else:
        screen.note(f"Deleted {escape(answer.id)}.")


def _show(call: Call[Session], *, as_json: bool, url: str, key: str | None) -> None:
    screen = Screen(as_json=as_json)
    with Gateway(url, key).client() as client:
        told = client.send(call)
    if as_json:
        screen.line(told)
        return
    screen.facts(
        {
            "session": told.id,
            "model": told.model,
            "version": told.version,
            "can go back to": ", ".join(map(str, told.versions)),
            "tokens read": told.tokens,
            "remembers": f"{told.state_bytes:,} bytes",
        }
    )
