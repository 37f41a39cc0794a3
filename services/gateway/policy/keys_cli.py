"""Make, list and revoke API keys on the gateway's machine.

A plug-in of the command line (entry-point group `fovea.commands`). Works on the key file; needs no running gateway.
"""

import getpass
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from redis.exceptions import RedisError

from fovea.cli.common_options import Form
from fovea.cli.option_groups import expand_options
from fovea.cli.output import Screen
from fovea.errors import Conflict, InvalidOption
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.caller import SCOPES, KeyScope
from services.gateway.policy.key_file import Key, in_utc
from shared.jobs.key_limits import REVOKED_KEYS
from shared.jobs.redis_connection import open_redis
from shared.settings import settings

keys = typer.Typer(help="Make, list and revoke API keys of the gateway on this machine.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Scopes = Annotated[
    list[str], typer.Option("--scope", help=f"Scopes of the key: {', '.join(SCOPES)}. May be given several times.")
]

_SPANS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """How much a key allows."""

    rate: Annotated[int | None, typer.Option(min=1, help="Requests per minute; unset, the common rate.")] = None
    quota: Annotated[int | None, typer.Option(min=1, help="Requests per day.")] = None
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per minute.")] = None
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Tokens per day.")] = None
    weight: Annotated[float, typer.Option(min=0.01, max=100, help="Share of a busy service next to others.")] = 1.0


@keys.command()
@expand_options
def add(
    tenant: Annotated[str, typer.Argument(help="Owner of the key: letters, digits, dots, dashes.")],
    scope: Scopes = ["infer", "jobs"],  # noqa: B006 - typer copies it
    *,
    limits: LimitOptions,
    expires: Annotated[str | None, typer.Option(help="After a span (12h, 30d, 4w) or on a date (2027-01-31).")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown only now; the file keeps its hash."""
    key, secret = KeyRing(settings().keys_path).add(
        tenant, _parse_scopes(scope), rate_per_minute=limits.rate, quota_per_day=limits.quota,
        tokens_per_minute=limits.tokens, tokens_per_day=limits.tokens_per_day, weight=limits.weight,
        expires=_parse_expiry(expires),
    )  # fmt: skip
    _write_audit("key made", key.id, tenant=key.tenant)
    _show(key, secret, f"of {key.tenant}; it is not shown again. Send it as: Authorization: Bearer …", as_json=as_json)


@keys.command(name="list")
def list_keys(as_json: AsJson = False, form: Form = None) -> None:
    """Show all keys, without their secrets."""
    ring, screen, rows = KeyRing(settings().keys_path), Screen(form, as_json=as_json), list[tuple[str, ...]]()
    known, used = ring.list_keys(), ring.read_last_used()
    if screen.wrote(*map(_describe, known)):
        return
    for key in known:
        limits = (str(key.rate_per_minute or "common"), str(key.quota_per_day or "–"))
        expiry = "expired" if key.is_expired else f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        last = f"{used[key.id]:%Y-%m-%d %H:%M}" if key.id in used else "–"
        rows.append((key.id, key.tenant, " ".join(key.scopes), *limits, f"{key.created:%Y-%m-%d}", expiry, last))
    screen.table(("id", "tenant", "scopes", "per minute", "per day", "created", "expires", "last used"), rows)


@keys.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id, as `fovea keys list` shows it.")]) -> None:
    """Revoke a key. The gateway refuses it within a second."""
    try:
        key = KeyRing(settings().keys_path).revoke(key_id)
    except Conflict as error:
        if not _publish_revoked(key_id):
            raise
        _write_audit("key revoked, but not in the key file", key_id, reason=error.detail)
        typer.echo(f"{error.detail} The key {key_id} is revoked in Redis: gateways and workers refuse it.", err=True)
        return
    _write_audit("key revoked", key.id, tenant=key.tenant)
    _publish_revoked(key.id)
    typer.echo(f"Key {key.id} of {key.tenant} is revoked.")


def _publish_revoked(key_id: str) -> bool:
    """Have gateways and workers refuse a key, whatever their key file says; False where Redis can't tell them."""
    if not (url := settings().redis_url) or not re.fullmatch(r"[0-9a-f]{8}", key_id):
        return False
    with suppress(RedisError, OSError), open_redis(url, socket_timeout=2, socket_connect_timeout=2) as client:
        client.sadd(REVOKED_KEYS, key_id)
        return True
    return False


@keys.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="The id, as `fovea keys list` shows it.")],
    overlap: Annotated[str, typer.Option(help="How long the old key stays valid: 12h, 7d, 4w.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a key like another, which stays valid for a while next to it."""
    end = _parse_expiry(overlap) or datetime.now(UTC)
    key, secret = KeyRing(settings().keys_path).rotate(key_id, max(end - datetime.now(UTC), timedelta()))
    end = min(key.expires or end, end)  # no later than it would have been without
    _write_audit("key rotated", key.id, tenant=key.tenant, old=key_id)
    told = f"replaces {key_id}, which stays valid until {end:%Y-%m-%d %H:%M} UTC."
    _show(key, secret, told, as_json=as_json)


def _show(key: Key, secret: str, told: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**_describe(key), "key": secret}))
        return
    typer.echo(secret)
    typer.echo(f"Key {key.id} {told}", err=True)


def _write_audit(act: str, key_id: str, **details: str) -> None:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = str(os.getuid())
    AuditLog(settings().audit_path).write(f"command/{user}", act, key_id, **details)


def _describe(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})


def _parse_scopes(names: list[str]) -> tuple[KeyScope, ...]:
    scopes = tuple(scope for scope in SCOPES if scope in names)
    if unknown := sorted(set(names) - set(SCOPES)):
        raise InvalidOption(f"There is no scope {unknown[0]!r}.", hint=f"Scopes are: {', '.join(SCOPES)}.")
    return scopes


def _parse_expiry(text: str | None) -> datetime | None:
    """Parse when a key expires: a span from now, or a date (UTC unless it states an offset)."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d{1,4})([hdw])", text):
        return datetime.now(UTC) + timedelta(**{_SPANS[match[2]]: int(match[1])})
    try:
        return in_utc(datetime.fromisoformat(text))
    except ValueError as error:
        detail = f"{text!r} is neither a span nor a date."
        raise InvalidOption(detail, hint="Write 12h, 30d, 4w or 2027-01-31.", field="expires") from error
