"""Pages of mapped weights: given back while nobody reads them, and read again from the file's cache when somebody does.

Linux only: elsewhere nothing is given back. Knows files; knows no model.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_SMAPS: Final = Path("/proc/self/smaps")
_MADV_DONTNEED: Final = 4
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(/.*)$")


def release_clean_pages(folder: Path) -> int:
    """Give back what this process holds of files below `folder`, mapped and not written to; returns how many bytes."""
    libc, given = ctypes.CDLL(None, use_errno=True), 0
    with suppress(OSError):
        for start, end, file, held, written in _read_mappings():
            is_ours = Path(file).is_relative_to(folder.resolve())
            if is_ours and held and not written:
                size = ctypes.c_size_t(end - start)
                given += 0 if libc.madvise(ctypes.c_void_p(start), size, _MADV_DONTNEED) else held
    return given


def _read_mappings() -> Iterator[tuple[int, int, str, int, int]]:
    """Start, end, file, bytes in memory and bytes written of each mapped file."""
    place: tuple[int, int, str] | None = None
    facts: dict[str, int] = {}
    for line in [*_SMAPS.read_text().splitlines(), "0-0 end"]:
        name, _, value = line.partition(":")
        if name in {"Rss", "Anonymous"}:  # a page that was written to is a copy, which is in no file: anonymous
            facts[name] = int(value.split()[0]) * 1024
        elif re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            if place is not None:
                yield *place, facts.get("Rss", 0), facts.get("Anonymous", 0)
            found = _MAPPING.match(line)
            place = (int(found[1], 16), int(found[2], 16), found[3]) if found else None
            facts = {}
