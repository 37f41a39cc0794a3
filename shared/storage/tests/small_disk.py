"""A real disk that is full or read-only, where the tests run as root."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mount_small_disk(place: Path) -> Iterator[Path]:
    """Mount a disk of 64 kB; skips the test where that takes rights that it has not."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def make_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def grow_disk(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
