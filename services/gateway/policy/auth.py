"""Authentication by API key: the keys of a file (`key_file`), read again when it changes, and when each was last used.

Knows nothing about counting requests (`quotas`) and nothing about HTTP beyond two header names.
"""

import asyncio
import hmac
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fovea.errors import Conflict, InvalidOption, NotFound, RateLimited, Unauthenticated
from services.gateway.policy.caller import TENANT_PATTERN, Caller, KeyScope
from services.gateway.policy.key_file import Key, edit_keys, hash_key, make_key, read_keys, replace_file
from shared.telemetry import log
from shared.validation_errors import parse_fields

RELOAD_INTERVAL_S = 0.5
"""Seconds between two checks of the key file."""

USED_INTERVAL_S = 30.0
"""Seconds between two writings of when keys were used."""

MAX_PER_MINUTE = 30
"""Wrong credentials that an address may send in a minute; the next ones are 429."""

_WINDOW_S = 60.0
_MAX_ADDRESSES = 10_000


def read_credentials(headers: Mapping[bytes, bytes]) -> str | None:
    """Read the key from a request's headers (lower-case names); None where there is none."""
    api_key = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return api_key or (key.strip() if kind.lower() == "bearer" and key.strip() else None)


class KeyRing:
    """The keys in a file, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        """Use the keys in `path`; a file that is not there holds none."""
        self._path = path
        self._callers: dict[str, tuple[Key, Caller]] = {}
        self._file_state: tuple[int, int, int] | None = None
        self._reload_due = float("-inf")
        self._blocked: set[str] = set()
        self._used: dict[str, datetime] = {}
        self._used_path = path.with_name(path.stem + ".used.json")
        self._used_due = float("-inf")

    def authenticate(self, key: str | None) -> Caller:
        """Find the caller that a key belongs to.

        Raises Unauthenticated: no key, an unknown one, or one that has expired.
        """
        if key is None:
            detail = "This gateway requires an API key."
            raise Unauthenticated(detail, hint="Send `Authorization: Bearer …` or `x-api-key: …`.")
        self._refresh(at_once=key[6:14] not in self._callers)  # it may have been made just now
        entry = self._callers.get(key[6:14])
        digest = hash_key(key)
        is_known = hmac.compare_digest(digest, entry[0].sha256 if entry else "0" * 64)
        if entry is None or not is_known or entry[0].id in self._blocked:
            raise Unauthenticated("The API key is not known.", hint="Check it, or ask for a new one.")
        if entry[0].is_expired:
            raise Unauthenticated(f"The API key expired at {entry[0].expires:%Y-%m-%d %H:%M} UTC.")
        self._note_use(entry[0].id)
        return entry[1]

    def knows(self, key_id: str) -> bool:
        """Whether this is the id of one of the keys."""
        return key_id in self._callers

    def describe(self, key_id: str) -> Key:
        """A key as it was last read; raises KeyError."""
        return self._callers[key_id][0]

    def is_valid(self, key_id: str) -> bool:
        """Whether requests of a key may go on: it is there, neither revoked nor expired."""
        self._refresh()
        entry = self._callers.get(key_id)
        return entry is not None and not entry[0].is_expired and key_id not in self._blocked

    def block(self, key_ids: Iterable[str]) -> None:
        """Refuse keys whatever the file says."""
        self._blocked.update(key_ids)

    def list_keys(self) -> list[Key]:
        """List all keys, oldest first. Raises Conflict: the file is not a key file."""
        return read_keys(self._path)

    def add(
        self, tenant: str, scopes: tuple[KeyScope, ...], *, expires: datetime | None = None, **limits: float | None
    ) -> tuple[Key, str]:
        """Make a key with limits (fields of `KeyLimits`); returns its entry and the secret text, which is not stored.

        Raises InvalidOption: the tenant's name, or a limit, is not valid.
        """
        if not re.fullmatch(TENANT_PATTERN, tenant):
            detail = f"{tenant[:64]!r} is not a valid tenant name."
            hint = "Use up to 64 letters, digits, dots, dashes or underscores."
            raise InvalidOption(detail, hint=hint, field="tenant")
        key, text = make_key({"tenant": tenant, "scopes": scopes, "expires": expires, **limits})
        with self._edit() as keys:
            keys.append(key)
        return key, text

    def revoke(self, key_id: str) -> Key:
        """Remove a key. Raises NotFound: there is no such key."""
        with self._edit() as keys:
            key = _find(keys, key_id)
            keys.remove(key)
            return key

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """Make a key that may do what another may; the other is valid for `overlap` longer.

        Raises NotFound: there is no such key; Conflict: its time is over, and so would be that of the new one.
        """
        with self._edit() as keys:
            old = _find(keys, key_id)
            if old.is_expired:
                raise Conflict(f"The key {key_id} expired at {old.expires:%Y-%m-%d %H:%M} UTC.", hint="Make a new one.")
            new, text = make_key({**dict(old), "expires": old.expires})
            end = datetime.now(UTC) + overlap
            keys[keys.index(old)] = old.model_copy(update={"expires": min(old.expires or end, end)})
            keys.append(new)
            return new, text

    def update(self, key_id: str, changes: Mapping[str, Any]) -> Key:
        """Change scopes, limits or the expiry of a key.

        Raises NotFound: there is no such key; InvalidOption: a value is out of range.
        """
        with self._edit() as keys:
            old = _find(keys, key_id)
            keys[keys.index(old)] = new = parse_fields(Key, {**old.model_dump(), **changes})
            return new

    def read_last_used(self) -> dict[str, datetime]:
        """When each key was last used, to half a minute, by id."""
        try:
            found: dict[str, str] = json.loads(self._used_path.read_text())
            stored = {key: datetime.fromisoformat(text) for key, text in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            stored = {}
        return {**stored, **{key: max(at, stored.get(key, at)) for key, at in self._used.items()}}

    @contextmanager
    def _edit(self) -> Iterator[list[Key]]:
        """The keys of the file, which are written back at the end and looked at again with the next request."""
        with edit_keys(self._path) as keys:
            yield keys
        self._reload_due = float("-inf")

    def _note_use(self, key_id: str) -> None:
        """Note that a key was used; written now and then, since nobody needs it to the second."""
        self._used[key_id] = datetime.now(UTC)
        if time.monotonic() < self._used_due:
            return
        self._used_due = time.monotonic() + USED_INTERVAL_S
        try:  # not on the event loop: a disk may take its time
            asyncio.get_running_loop().run_in_executor(None, self._write_used)
        except RuntimeError:  # there is none
            self._write_used()

    def _write_used(self) -> None:
        try:
            known = {key: at.isoformat() for key, at in self.read_last_used().items()}
            replace_file(self._used_path, known)
        except OSError as error:
            self._used_due = time.monotonic() + 3600  # a file that a Secret holds can't be written later either
            log().warning("when keys were used can't be written", reason=str(error))

    def _refresh(self, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() < self._reload_due:
            return
        self._reload_due = time.monotonic() + RELOAD_INTERVAL_S
        state: tuple[int, int, int] | None = None
        try:
            with suppress(FileNotFoundError):
                stat = self._path.stat()
                state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if state == self._file_state:
                return
            keys = read_keys(self._path)
        except (Conflict, OSError) as error:
            log().error("the key file can't be read; the keys read before stay valid", reason=str(error))
            return
        self._file_state = state
        self._callers = {k.id: (k, Caller(k.tenant, frozenset(k.scopes), k.id, limits=k)) for k in keys}


def _find(keys: Iterable[Key], key_id: str) -> Key:
    for key in keys:
        if key.id == key_id:
            return key
    raise NotFound(f"There is no key {key_id[:64]!r}.", hint="`fovea keys list` shows the ids.")


class BadKeys:
    """Wrong credentials of the last minute, by address.

    A good key is answered from wherever it comes: behind a proxy all callers share an address.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def note(self, address: str) -> None:
        """Count one more wrong credential. Raises RateLimited: the address has sent too many."""
        now = time.monotonic()
        since, count = self._seen.get(address, (now, 0))
        if now - since >= _WINDOW_S:
            since, count = now, 0
        if len(self._seen) >= _MAX_ADDRESSES and address not in self._seen:
            self._forget(now)
        self._seen[address] = (since, count + 1)
        if count >= MAX_PER_MINUTE:
            detail = "Too many wrong keys came from this address."
            wait_s = math.ceil(since + _WINDOW_S - now)
            raise RateLimited(detail, hint=f"Check the key, and try again in {wait_s} s.", retry_after=wait_s)

    def _forget(self, now: float) -> None:
        """Forget addresses whose minute is over; where there are none, the one that came first."""
        kept = {address: seen for address, seen in self._seen.items() if now - seen[0] < _WINDOW_S}
        if len(kept) >= _MAX_ADDRESSES:
            del kept[next(iter(kept))]
        self._seen = kept
