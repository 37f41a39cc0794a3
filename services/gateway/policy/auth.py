"""API keys: a file of hashed keys, and what each key allows.

A key reads `fovea_<id>_<secret>`; the file holds the id in clear and the SHA-256 of the whole key. The secret has 160
random bits, so a plain hash is enough: there is nothing to guess. The file is read again when it changes.
Knows nothing about counting requests (`rate_limits`) and nothing about HTTP beyond two header names.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import Conflict, InvalidOption, NotFound, PermissionDenied, Unauthenticated
from shared.telemetry import log

__all__ = ["LOCAL", "SCOPES", "Caller", "Key", "KeyRing", "KeyScope", "read_credentials"]

KeyScope = Literal["infer", "jobs", "admin", "metrics"]

SCOPES: tuple[KeyScope, ...] = ("infer", "jobs", "admin", "metrics")
"""`infer` runs models, `jobs` queues and reads jobs, `admin` loads and unloads models, `metrics` reads `/metrics`."""

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a tenant's name looks like; it becomes part of Redis keys and log lines."""

RELOAD_INTERVAL_S = 0.5
"""Seconds between two checks of the key file."""


class Key(BaseModel):
    """One stored key: everything but the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    tenant: str = Field(pattern=TENANT_PATTERN, description="Whose jobs and quotas these are.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Hash of the whole key.")
    scopes: tuple[KeyScope, ...] = ("infer", "jobs")
    rate_per_minute: int | None = Field(None, ge=1, description="Own rate; null for the tenant's common one.")
    quota_per_day: int | None = Field(None, ge=1, description="Requests per day; null for no quota.")
    created: datetime
    expires: datetime | None = None

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request is served for: a tenant, its permissions and its limits."""

    tenant: str
    scopes: frozenset[str]
    key: str = ""
    rate_per_minute: int | None = None
    quota_per_day: int | None = None

    def require_scope(self, scope: KeyScope) -> None:
        """Check that the key has a scope.

        Raises:
            PermissionDenied: The key does not have it.
        """
        if scope not in self.scopes:
            detail = f"This key lacks the scope {scope!r}; it has {', '.join(sorted(self.scopes)) or 'none'}."
            raise PermissionDenied(detail, hint=f"Make one with `fovea keys add TENANT --scope {scope}`.")


LOCAL = Caller("local", frozenset(SCOPES))
"""Every caller of a gateway without keys."""


def read_credentials(headers: Mapping[bytes, bytes]) -> str | None:
    """Read the key from a request's headers (lower-case names); None where there is none."""
    if (api_key := headers.get(b"x-api-key")) is not None:
        return api_key.decode("latin-1").strip()
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else None


class KeyRing:
    """The keys in a file, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        """Use the keys in `path`; a file that is not there holds none."""
        self._path = path
        self._callers: dict[str, tuple[Key, Caller]] = {}
        self._file_state: tuple[int, int, int] | None = None
        self._reload_due = float("-inf")

    def authenticate(self, key: str | None) -> Caller:
        """Find the caller that a key belongs to.

        Raises:
            Unauthenticated: No key, an unknown one, or one that has expired.
        """
        if key is None:
            detail = "This gateway requires an API key."
            raise Unauthenticated(detail, hint="Send `Authorization: Bearer …` or `x-api-key: …`.")
        self._refresh()
        entry = self._callers.get(key[6:14])
        digest = _hash_key(key)
        is_known = hmac.compare_digest(digest, entry[0].sha256 if entry else "0" * 64)
        if entry is None or not is_known:
            raise Unauthenticated("The API key is not known.", hint="Check it, or ask for a new one.")
        if entry[0].is_expired:
            raise Unauthenticated(f"The API key expired at {entry[0].expires:%Y-%m-%d %H:%M} UTC.")
        return entry[1]

    def list_keys(self) -> list[Key]:
        """List all keys, oldest first.

        Raises:
            Conflict: The file is not a key file.
        """
        return list(_read_file(self._path))

    def add(
        self,
        tenant: str,
        scopes: tuple[KeyScope, ...],
        *,
        rate_per_minute: int | None = None,
        quota_per_day: int | None = None,
        expires: datetime | None = None,
    ) -> tuple[Key, str]:
        """Make a key; returns its entry and the secret text to hand out, which is not stored.

        Raises:
            InvalidOption: The tenant's name is not valid.
        """
        if not re.fullmatch(TENANT_PATTERN, tenant):
            detail = f"{tenant[:64]!r} is not a valid tenant name."
            raise InvalidOption(
                detail, hint="Use up to 64 letters, digits, dots, dashes or underscores.", field="tenant"
            )
        name = secrets.token_hex(4)
        text = f"fovea_{name}_{secrets.token_hex(20)}"
        key = Key(
            id=name,
            tenant=tenant,
            sha256=_hash_key(text),
            scopes=scopes,
            rate_per_minute=rate_per_minute,
            quota_per_day=quota_per_day,
            created=datetime.now(UTC),
            expires=expires,
        )
        _write_file(self._path, [*_read_file(self._path), key])
        return key, text

    def revoke(self, key_id: str) -> Key:
        """Remove a key.

        Raises:
            NotFound: There is no such key.
        """
        keys = _read_file(self._path)
        for key in keys:
            if key.id == key_id:
                _write_file(self._path, [k for k in keys if k is not key])
                return key
        raise NotFound(f"There is no key {key_id!r}.", hint="`fovea keys list` shows the ids.")

    def _refresh(self) -> None:
        if time.monotonic() < self._reload_due:
            return
        self._reload_due = time.monotonic() + RELOAD_INTERVAL_S
        try:
            stat = self._path.stat()
            state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except FileNotFoundError:
            state = None
        if state == self._file_state:
            return
        try:
            keys = _read_file(self._path)
        except Conflict as error:
            log().error("the key file can't be read; the keys read before stay valid", reason=error.detail)
            return
        self._file_state = state
        self._callers = {k.id: (k, _build_caller(k)) for k in keys}


def _build_caller(key: Key) -> Caller:
    return Caller(key.tenant, frozenset(key.scopes), key.id, key.rate_per_minute, key.quota_per_day)


def _hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read_file(path: Path) -> list[Key]:
    try:
        document = json.loads(path.read_text())
        return [Key.model_validate(entry) for entry in document["keys"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        detail = f"{path} is not a key file: {type(error).__name__}."
        raise Conflict(detail, hint="Restore it, or move it away and make new keys.") from error


def _write_file(path: Path, keys: list[Key]) -> None:
    """Replace the file in one step, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"keys": [k.model_dump(mode="json") for k in keys]}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
