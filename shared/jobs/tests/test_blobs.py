"""The blob store: whole or not at all, and gone when told."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from shared.errors import Fault
from shared.jobs.blobs import BlobStore, FolderBlobs


async def test_what_was_put_comes_back(tmp_path: Path) -> None:
    blobs: BlobStore = FolderBlobs(tmp_path / "deep" / "blobs")
    await blobs.put("a/request", b"\0\xff" * 1000)
    assert await blobs.get("a/request") == b"\0\xff" * 1000
    await blobs.put("a/request", b"")
    assert await blobs.get("a/request") == b""


async def test_what_is_gone_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="gone"):
        await FolderBlobs(tmp_path).get("a/request")


async def test_deleting_is_idempotent_and_touches_one_job(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    for name in ("a/request", "a/answer-1", "b/request"):
        await blobs.put(name, b"x")
    for _ in range(2):
        await blobs.delete("a/request")
    assert await blobs.get("a/answer-1") == b"x"
    for _ in range(2):
        await blobs.delete_job("a")
    assert sorted(await blobs.older_than(-60)) == ["b"]


async def test_a_failed_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = FolderBlobs(tmp_path)
    await blobs.put("a/request", b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await blobs.put("a/request", b"new")
    assert await blobs.get("a/request") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["request"]


async def test_readers_never_see_half_a_blob(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    contents = [bytes([n]) * 200_000 for n in range(8)]
    await blobs.put("a/request", contents[0])

    async def write() -> None:
        for content in contents:
            await blobs.put("a/request", content)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await blobs.get("a/request") in contents
    await writing


async def test_age_is_that_of_the_newest_blob(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    assert await FolderBlobs(tmp_path / "none").older_than(0) == []
    await blobs.put("old/request", b"x")
    os.utime(tmp_path / "old", (time.time() - 100,) * 2)
    await blobs.put("new/request", b"x")
    assert await blobs.older_than(50) == ["old"]
    await blobs.put("old/answer-1", b"x")
    assert await blobs.older_than(50) == []
