"""The folder in which a Ray of our own keeps its sockets and logs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

INSIDE = "r"
"""Ray's own folder, which it opens for everybody, inside of a private one; short, because paths of sockets are."""

_MAX_TEMP_PATH = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""Longest temporary folder under which Ray's unix sockets still have a legal path."""


def make_ray_folder(data_dir: Path) -> Path:
    """An empty folder that nobody else looks into: in the data folder, or a temporary one where that can't be it."""
    preferred = (data_dir / "ray").resolve()
    if len(str(preferred / INSIDE)) <= _MAX_TEMP_PATH:
        shutil.rmtree(preferred, ignore_errors=True)  # what a killed Ray left
        with contextlib.suppress(OSError):
            preferred.mkdir(mode=0o700, parents=True)
            return preferred
    return Path(tempfile.mkdtemp(prefix="fovea-"))
