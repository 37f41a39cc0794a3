"""Reserved file: a small file that can be replaced in one step on a full disk, as its successor has its blocks already.

Next to the file is a spare of the same size. New content is written into the spare, padded with line feeds, and the two
change places: nothing is allocated. Assumes that line feeds at the end of the content mean nothing.
"""

import os
from contextlib import suppress
from pathlib import Path

_BLOCK = 4096
_HEADROOM = 4 * _BLOCK
"""Room beyond the content, so that a larger one fits as well."""


def replace_reserved(path: Path, content: bytes) -> None:
    """Replace a file, readable by its owner only; one process at a time.

    Raises OSError: there is neither room for it nor a spare that is large enough.
    """
    spare, old = _beside(path, ".spare"), _beside(path, ".old")
    try:
        size = _reserve(spare, len(content))
        _write_all(spare, content.ljust(size, b"\n"))
    except OSError:
        _overwrite(path, content)
        return
    old.unlink(missing_ok=True)
    with suppress(OSError):  # the file is new, or its file system knows no links: the next spare is a new one
        os.link(path, old)
    spare.replace(path)
    with suppress(OSError):
        old.replace(spare)
    with suppress(OSError):  # on a full disk what there is must do
        _reserve(spare, len(content))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _overwrite(path: Path, content: bytes) -> None:
    """Write into the blocks of the file itself: the last resort, without a step at which all is either old or new."""
    size = path.stat().st_size
    if len(content) > size:
        raise OSError(28, "No space left on device", str(path))
    _write_all(path, content.ljust(size, b"\n"))


def _reserve(path: Path, size: int) -> int:
    """Give a file the blocks for `size` bytes; returns how many bytes it has."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        present = os.fstat(handle).st_size
        wanted = -(-size // _BLOCK) * _BLOCK + _HEADROOM
        if present < size:
            os.posix_fallocate(handle, 0, wanted)
            present = wanted
        return present
    finally:
        os.close(handle)


def _write_all(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)
