"""`fovea keys`: makes, lists and revokes API keys on the gateway's machine.

A plug-in of the command line (entry-point group `fovea.verbs`). Works on the key file; needs no running gateway.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.gateway.policy.auth import SCOPES, Key, KeyRing, KeyScope
from shared.errors import FoveaError, InvalidOption
from shared.settings import settings

__all__ = ["keys"]

keys = typer.Typer(help="Make, list and revoke API keys of the gateway on this machine.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Scopes = Annotated[
    list[str], typer.Option("--scope", help=f"What the key allows: {', '.join(SCOPES)}. May be given several times.")
]

_SPANS = {"h": "hours", "d": "days", "w": "weeks"}


@keys.command()
def add(
    tenant: Annotated[str, typer.Argument(help="Owner of the key: letters, digits, dots, dashes.")],
    scope: Scopes = ["infer", "jobs"],  # noqa: B006 - typer copies it
    rate: Annotated[
        int | None, typer.Option(min=1, help="Requests per minute; unset, the tenant's common rate.")
    ] = None,
    quota: Annotated[int | None, typer.Option(min=1, help="Requests per day.")] = None,
    expires: Annotated[str | None, typer.Option(help="After a span (12h, 30d, 4w) or on a date (2027-01-31).")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown only now; the file keeps its hash."""
    try:
        key, secret = _open_key_ring().add(
            tenant, _parse_scopes(scope), rate_per_minute=rate, quota_per_day=quota, expires=_parse_expiry(expires)
        )
    except FoveaError as error:
        raise _exit_with(error) from error
    if as_json:
        typer.echo(json.dumps({**_describe(key), "key": secret}))
        return
    typer.echo(secret)
    typer.echo(f"Key {key.id} of {key.tenant}; it is not shown again. Send it as: Authorization: Bearer …", err=True)


@keys.command(name="list")
def list_keys(as_json: AsJson = False) -> None:
    """Show all keys, without their secrets."""
    try:
        known = _open_key_ring().list_keys()
    except FoveaError as error:
        raise _exit_with(error) from error
    if as_json:
        typer.echo(json.dumps([_describe(key) for key in known]))
        return
    table = Table("id", "tenant", "scopes", "per minute", "per day", "created", "expires")
    for key in known:
        limits = (str(key.rate_per_minute or "common"), str(key.quota_per_day or "–"))
        expiry = "expired" if key.is_expired else f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        table.add_row(key.id, key.tenant, " ".join(key.scopes), *limits, f"{key.created:%Y-%m-%d}", expiry)
    Console().print(table)


@keys.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id, as `fovea keys list` shows it.")]) -> None:
    """Revoke a key. The gateway refuses it within a second."""
    try:
        key = _open_key_ring().revoke(key_id)
    except FoveaError as error:
        raise _exit_with(error) from error
    typer.echo(f"Key {key.id} of {key.tenant} is revoked.")


def _open_key_ring() -> KeyRing:
    return KeyRing(settings().keys_path)


def _describe(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})


def _parse_scopes(names: list[str]) -> tuple[KeyScope, ...]:
    scopes = tuple(scope for scope in SCOPES if scope in names)
    if unknown := sorted(set(names) - set(SCOPES)):
        raise InvalidOption(f"There is no scope {unknown[0]!r}.", hint=f"Scopes are: {', '.join(SCOPES)}.")
    return scopes


def _parse_expiry(text: str | None) -> datetime | None:
    """Parse when a key expires: a span from now, or a date (UTC)."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d{1,4})([hdw])", text):
        return datetime.now(UTC) + timedelta(**{_SPANS[match[2]]: int(match[1])})
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        detail = f"{text!r} is neither a span nor a date."
        raise InvalidOption(detail, hint="Write 12h, 30d, 4w or 2027-01-31.", field="expires") from error


def _exit_with(error: FoveaError) -> typer.Exit:
    """Print what is wrong and what to try, in one line."""
    typer.echo(f"{error.detail} {error.hint or ''}".rstrip(), err=True)
    return typer.Exit(2)
