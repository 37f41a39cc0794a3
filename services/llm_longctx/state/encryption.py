"""What a session remembers is its tenant's: sealed under a key of that tenant before it leaves the process.

AES-256-GCM from the `cryptography` package; the tenants' keys are derived from one master key, which is given or kept
in a file that only this user may read. A sealed text is bound to the place where it is kept, so that one tenant's or
one version's bytes can't be put where another's were. Knows bytes; knows no Redis.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import Conflict

__all__ = ["Sealing", "master_key"]

_NONCE = 12


class Sealing:
    """Seals and opens the bytes of tenants.

    Args:
        master: The master key, at least 16 bytes.

    Raises:
        ValueError: The key is too short.
    """

    def __init__(self, master: bytes) -> None:
        if len(master) < 16:
            message = f"the master key of sessions has {len(master)} bytes; 16 are needed"
            raise ValueError(message)
        self._master = master

    def seal(self, data: bytes, tenant: str, place: str) -> bytes:
        """Bytes that only `open` with the same tenant and place gives back."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher(tenant).encrypt(nonce, data, place.encode())

    def open(self, sealed: bytes, tenant: str, place: str) -> bytes:
        """The bytes that were sealed.

        Raises:
            Conflict: They were sealed under another master key, for another tenant or place, or are damaged.
        """
        try:
            return self._cipher(tenant).decrypt(sealed[:_NONCE], sealed[_NONCE:], place.encode())
        except (InvalidTag, ValueError) as error:
            detail = "What the session remembers can't be opened: it is damaged, or the key of sessions has changed."
            raise Conflict(detail, hint="Start a new session, or bring the old key back.") from error

    def _cipher(self, tenant: str) -> AESGCM:
        derived = HKDF(SHA256(), 32, salt=None, info=b"fovea sessions:" + tenant.encode()).derive(self._master)
        return AESGCM(derived)


def master_key(given: str | None, folder: Path) -> bytes:
    """The key that is given, or the one of this data folder, made when it is first needed.

    Several processes may ask at once: the first to link its file wins, and all read that one.
    """
    if given is not None:
        return given.encode()
    path = folder / "session.key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".session.key.{os.getpid()}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_bytes()
