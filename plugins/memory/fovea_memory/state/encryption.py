"""Encryption at rest of sessions and documents, under a key per tenant.

AES-256-GCM from the `cryptography` package; tenant keys are derived from one master key, which the settings give or a
file holds that only this user may read. A ciphertext is bound to the Redis key that it is stored under, so that one
tenant's or one version's bytes can't stand in for another's. Knows bytes; knows no Redis.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fovea.errors import Conflict

_NONCE_BYTES = 12


class TenantCipher:
    """Encrypts and decrypts the bytes of tenants.

    Args:
        master: The master key, at least 16 bytes.

    Raises:
        ValueError: The key is too short.
    """

    def __init__(self, master: bytes) -> None:
        if len(master) < 16:
            raise ValueError(f"the master key of sessions has {len(master)} bytes; 16 are needed")
        self._master = master

    def encrypt(self, data: bytes, tenant: str, key: str) -> bytes:
        """Encrypt data that is stored under a Redis key; `decrypt` needs the same tenant and key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher(tenant).encrypt(nonce, data, key.encode())

    def decrypt(self, encrypted: bytes, tenant: str, key: str) -> bytes:
        """Decrypt what `encrypt` returned.

        Raises:
            Conflict: It was encrypted under another master key, for another tenant or Redis key, or is damaged.
        """
        try:
            return self._cipher(tenant).decrypt(encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], key.encode())
        except (InvalidTag, ValueError) as error:
            detail = "The stored data can't be opened: it is damaged, or the key of sessions has changed."
            raise Conflict(detail, hint="Start a new session, or restore the old FOVEA_SESSION_KEY.") from error

    def _cipher(self, tenant: str) -> AESGCM:
        derived = HKDF(SHA256(), 32, salt=None, info=b"fovea sessions:" + tenant.encode()).derive(self._master)
        return AESGCM(derived)


def load_master_key(configured: str | None, folder: Path) -> bytes:
    """The configured key, or the one in the data folder, which is created when it is first needed.

    Several processes may create it at once: the first to link its file wins, and all read that one.
    """
    if configured is not None:
        return configured.encode()
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
