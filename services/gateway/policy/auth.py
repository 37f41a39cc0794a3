"""API keys: a file of hashed keys, and what each key allows.

A key reads `fovea_<id>_<secret>`; the file holds the id in clear and the SHA-256 of the whole key. The secret has 160
random bits, so a plain hash is enough: there is nothing to guess. The file is read again when it changes.
Knows nothing about counting requests (`rate_limits`) and nothing about HTTP beyond two header names.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import Conflict, InvalidOption, NotFound, PermissionDenied, Unauthenticated
from shared.telemetry import log

__all__ = [
    "LOCAL",
    "SCOPES",
    "TENANT_PATTERN",
    "Caller",
    "Key",
    "KeyLimits",
    "KeyRing",
    "KeyScope",
    "read_credentials",
]

KeyScope = Literal["infer", "jobs", "admin", "metrics"]

SCOPES: tuple[KeyScope, ...] = ("infer", "jobs", "admin", "metrics")
"""`infer` runs models, `jobs` queues and reads jobs, `admin` manages keys and models, `metrics` reads `/metrics`."""

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a tenant's name looks like; it becomes part of Redis keys and log lines."""

RELOAD_INTERVAL_S = 0.5
"""Seconds between two checks of the key file."""


USED_INTERVAL_S = 30.0
"""Seconds between two writings of when keys were used."""


class KeyLimits(TypedDict, total=False):
    """Limits of a key, as `Key` describes them."""

    rate_per_minute: int | None
    quota_per_day: int | None
    tokens_per_minute: int | None
    tokens_per_day: int | None
    weight: float


class Key(BaseModel):
    """One stored key: everything but the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    tenant: str = Field(pattern=TENANT_PATTERN, description="Whose jobs and quotas these are.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Hash of the whole key.")
    scopes: tuple[KeyScope, ...] = ("infer", "jobs")
    rate_per_minute: int | None = Field(None, ge=1, description="Own rate; null for the tenant's common one.")
    quota_per_day: int | None = Field(None, ge=1, description="Requests per day; null for no quota.")
    tokens_per_minute: int | None = Field(None, ge=1, description="Tokens read and written per minute; null for none.")
    tokens_per_day: int | None = Field(None, ge=1, description="Tokens read and written per day; null for none.")
    weight: float = Field(1.0, gt=0, le=100, description="Share of a busy service beside other tenants.")
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
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    weight: float = 1.0

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
        self._used: dict[str, datetime] = {}
        self._used_path = path.with_name(path.stem + ".used.json")
        self._used_due = float("-inf")

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
        self._note_use(entry[0].id)
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
        expires: datetime | None = None,
        **limits: Unpack[KeyLimits],
    ) -> tuple[Key, str]:
        """Make a key; returns its entry and the secret text to hand out, which is not stored.

        Raises:
            InvalidOption: The tenant's name, or a limit, is not valid.
        """
        if not re.fullmatch(TENANT_PATTERN, tenant):
            detail = f"{tenant[:64]!r} is not a valid tenant name."
            raise InvalidOption(
                detail, hint="Use up to 64 letters, digits, dots, dashes or underscores.", field="tenant"
            )
        key, text = _make_key({"tenant": tenant, "scopes": scopes, "expires": expires, **limits})
        with self._changing() as keys:
            keys.append(key)
        return key, text

    def revoke(self, key_id: str) -> Key:
        """Remove a key.

        Raises:
            NotFound: There is no such key.
        """
        with self._changing() as keys:
            key = _find(keys, key_id)
            keys.remove(key)
            return key

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """Make a key that may do what another may; the other is valid for `overlap` longer.

        Raises:
            NotFound: There is no such key.
        """
        with self._changing() as keys:
            old = _find(keys, key_id)
            new, text = _make_key({**dict(old), "expires": old.expires})
            end = datetime.now(UTC) + overlap
            keys[keys.index(old)] = old.model_copy(update={"expires": min(old.expires or end, end)})
            keys.append(new)
            return new, text

    def update(self, key_id: str, changes: Mapping[str, Any]) -> Key:
        """Change scopes, limits or the expiry of a key.

        Raises:
            NotFound: There is no such key.
            InvalidOption: A value is out of range.
        """
        with self._changing() as keys:
            old = _find(keys, key_id)
            keys[keys.index(old)] = new = _validate({**old.model_dump(), **changes})
            return new

    def read_last_used(self) -> dict[str, datetime]:
        """When each key was last used, to half a minute, by id."""
        try:
            found: dict[str, str] = json.loads(self._used_path.read_text())
            stored = {key: datetime.fromisoformat(text) for key, text in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            stored = {}
        return {**stored, **self._used}

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys of the file, which are written back at the end; nobody else changes them meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = _read_file(self._path)
            yield keys
            _write_file(self._path, {"keys": [k.model_dump(mode="json") for k in keys]})
            self._reload_due = float("-inf")
        finally:
            os.close(lock)

    def _note_use(self, key_id: str) -> None:
        """Note that a key was used; written now and then, since nobody needs it to the second."""
        self._used[key_id] = datetime.now(UTC)
        if time.monotonic() < self._used_due:
            return
        self._used_due = time.monotonic() + USED_INTERVAL_S
        try:
            known = {key: at.isoformat() for key, at in self.read_last_used().items()}
            _write_file(self._used_path, known)
        except OSError as error:
            log().warning("when keys were used can't be written", reason=str(error))

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
    return Caller(
        key.tenant,
        frozenset(key.scopes),
        key.id,
        key.rate_per_minute,
        key.quota_per_day,
        key.tokens_per_minute,
        key.tokens_per_day,
        key.weight,
    )


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


def _make_key(fields: Mapping[str, Any]) -> tuple[Key, str]:
    """A new key with these fields, and its text."""
    name = secrets.token_hex(4)
    text = f"fovea_{name}_{secrets.token_hex(20)}"
    return _validate({**fields, "id": name, "sha256": _hash_key(text), "created": datetime.now(UTC)}), text


def _validate(fields: Mapping[str, Any]) -> Key:
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidOption(f"{field}: {first['msg']}.", field=field) from error


def _find(keys: Iterable[Key], key_id: str) -> Key:
    for key in keys:
        if key.id == key_id:
            return key
    raise NotFound(f"There is no key {key_id[:64]!r}.", hint="`fovea keys list` shows the ids.")


def _write_file(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file in one step, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
