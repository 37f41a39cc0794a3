"""Private files: what a process of the platform writes is readable by its own user alone.

State holds users' texts, pictures and keys, also in files that libraries write (Ray's folder would be anybody's).
"""

import os
from contextlib import suppress
from pathlib import Path

_UMASK = 0o077


def make_files_private(data_dir: Path) -> None:
    """Let no other user read what this process and its children write from now on, nor look into the data folder.

    A folder that is another user's (a mounted volume) keeps the rights that its owner gave it.
    """
    os.umask(_UMASK)
    with suppress(OSError):  # a read-only folder does not stop the start; the first write to it fails
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_uid == os.getuid():
            data_dir.chmod(0o700)
