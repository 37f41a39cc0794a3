"""Blob store for bodies too large for Redis: by name, written whole or not at all, deleted with their job.

A name is `<job id>/<part>`. `FolderBlobs` stores them in a folder that gateway and workers share; an object store needs
the same five verbs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from shared.errors import Fault

__all__ = ["BlobStore", "FolderBlobs"]


class BlobStore(Protocol):
    """Stores bytes by name. All verbs may be repeated without harm."""

    async def put(self, name: str, content: bytes) -> None:
        """Store `content` under `name`, durably, visible only when complete; replaces what was there."""
        ...

    async def get(self, name: str) -> bytes:
        """The content; `Fault` when it is gone."""
        ...

    async def delete(self, name: str) -> None:
        """Delete one blob; unknown ones are ignored."""
        ...

    async def delete_job(self, job_id: str) -> None:
        """Delete all blobs of a job."""
        ...

    async def older_than(self, seconds: float) -> list[str]:
        """Ids of jobs whose newest blob was written at least so long ago."""
        ...


class FolderBlobs:
    """Blobs as files `<root>/<job id>/<part>`. Synced before they are named: what was accepted survives a crash."""

    def __init__(self, root: Path) -> None:
        """Use `root`; it is created when first needed."""
        self._root = root

    async def put(self, name: str, content: bytes) -> None:
        """Write beside the target, sync, rename."""
        await asyncio.to_thread(self._write, self._root / name, content)

    async def get(self, name: str) -> bytes:
        """Read the file."""
        try:
            return await asyncio.to_thread((self._root / name).read_bytes)
        except FileNotFoundError as error:
            raise Fault(
                "The stored body of this job is gone.", hint="Gateway and workers must share FOVEA_DATA_DIR."
            ) from error

    async def delete(self, name: str) -> None:
        """Remove the file; its folder goes with the job."""
        await asyncio.to_thread((self._root / name).unlink, missing_ok=True)

    async def delete_job(self, job_id: str) -> None:
        """Remove the job's folder."""
        await asyncio.to_thread(shutil.rmtree, self._root / job_id, ignore_errors=True)

    async def older_than(self, seconds: float) -> list[str]:
        """Compare the folders' modification times, which every new blob updates."""
        return await asyncio.to_thread(self._older, time.time() - seconds)

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        for folder in (path.parent, self._root, self._root.parent):
            _sync_folder(folder)

    def _older(self, instant: float) -> list[str]:
        found = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._root):
                with suppress(FileNotFoundError):
                    if entry.is_dir() and entry.stat().st_mtime <= instant:
                        found.append(entry.name)
        return found


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
