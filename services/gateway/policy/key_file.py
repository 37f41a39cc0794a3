"""Key file: API keys as they are stored, their hashes alone, and files that only their owner reads.

A key reads `fovea_<id>_<secret>`; the file holds the id in clear and the SHA-256 of the whole key. The secret has 160
random bits, so a plain hash is enough: there is nothing to guess.
"""

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from fovea.errors import Conflict
from services.gateway.policy.caller import TENANT_PATTERN, KeyLimits, KeyScope
from services.gateway.policy.reserved_file import replace_reserved
from shared.validation_errors import list_errors, parse_fields


def in_utc(moment: datetime) -> datetime:
    """The moment in UTC, which one without an offset is taken to be in. Raises ValueError: it is out of range."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError(str(error)) from error


Expiry = Annotated[datetime, AfterValidator(in_utc), Field(description="In UTC, unless it states an offset.")]


class KeyFacts(KeyLimits):
    """Public facts of a key."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    tenant: str = Field(pattern=TENANT_PATTERN, description="Whose jobs and quotas these are.")
    scopes: tuple[KeyScope, ...] = ("infer", "jobs")
    created: datetime
    expires: Expiry | None = None


class Key(KeyFacts):
    """One stored key: everything but the key itself."""

    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Hash of the whole key.")

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


_KEYS = TypeAdapter(list[Key])


def hash_key(key: str) -> str:
    """Hash a whole key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def make_key(fields: Mapping[str, Any]) -> tuple[Key, str]:
    """Make a key with these fields; returns its entry and its text. Raises InvalidOption: a field is out of range."""
    name = secrets.token_hex(4)
    text = f"fovea_{name}_{secrets.token_hex(20)}"
    return parse_fields(Key, {**fields, "id": name, "sha256": hash_key(text), "created": datetime.now(UTC)}), text


def read_keys(path: Path) -> list[Key]:
    """Read all keys, oldest first; a file that is not there holds none. Raises Conflict: the file is not a key file."""
    try:
        document = json.loads(path.read_text())
        return _KEYS.validate_python(document["keys"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        why = type(error).__name__
        if isinstance(error, ValidationError):
            first = list_errors(error)[0]
            why = f"{'.'.join(map(str, ('keys', *first['loc'])))}: {first['msg']}"
        detail = f"{path} is not a key file: {why}."
        raise Conflict(detail, hint="Correct it, or restore it.") from error


@contextmanager
def edit_keys(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, which are written back at the end; nobody else changes them meanwhile.

    Raises Conflict: the file or its folder can't be written, as where the file is mounted from a Secret.
    """
    try:
        with _locked(path):
            keys = read_keys(path)
            yield keys
            content = json.dumps({"keys": [key.model_dump(mode="json") for key in keys]}, indent=2)
            replace_reserved(path, content.encode())
    except OSError as error:
        hint = "Point FOVEA_KEYS_FILE to a file in a writable folder, or change the keys where the file comes from."
        raise Conflict(f"The key file {path} can't be changed: {error.strerror or error}.", hint=hint) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def replace_file(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, readable by its owner only."""
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
