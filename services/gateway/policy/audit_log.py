"""Audit log: who changed what, one JSON object a line, appended to a file that only its owner reads."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.telemetry import log

STEERING_FIELDS = ("interventions", "capture")
"""Fields of a body that steer a model or look inside: a request that is queued with one is audited."""

_MAX_READ_BYTES = 2**20


class AuditLog:
    """The audit log in one file."""

    def __init__(self, path: Path) -> None:
        """Append to `path`, which is made at the first act."""
        self._path = path

    def write(self, actor: str, act: str, target: str, **details: Any) -> None:
        """Write one act; a line is one write, so that processes may share the file.

        An act is not undone for want of room in the file: the process' own log gets the act then.
        """
        entry = {"time": datetime.now(UTC).isoformat(), "actor": actor, "act": act, "target": target, **details}
        try:
            self._append(json.dumps(entry, default=str).encode() + b"\n")
        except OSError as error:
            facts = {f"audit_{name}": str(value) for name, value in entry.items()}
            log().error("the audit log can't be written", reason=str(error), **facts)

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        try:
            end = os.fstat(handle).st_size
            if os.write(handle, line) < len(line):
                os.ftruncate(handle, end)
                raise OSError(28, "No space left on device")
        finally:
            os.close(handle)

    def read(self, limit: int) -> list[Mapping[str, Any]]:
        """The last acts, newest first."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - _MAX_READ_BYTES, 0))
                lines = file.read().splitlines()[size > _MAX_READ_BYTES :]  # the first one has lost its beginning
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines[-limit:][::-1] if line.startswith(b"{")]
