"""Finds Chromium for the console's tests, and installs Debian's where that is possible: `python -m tests.browser`.

Never fails: without a browser the tests marked `browser` are skipped. `tests/skips.toml` does not allow that, so the
run fails, and this says what to try.
"""

import os
import shutil
import subprocess
import sys

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""For a container without a user namespace or a network; closed networks otherwise refuse many connections at once."""


BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The shell, which has no window to manage, needs half of the others' processor time."""


def chromium() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def install() -> str | None:
    """Install Debian's Chromium if we may, where it has one as a headless shell; return its path, or None."""
    if chromium() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        for command in (["update"], *(["install", "-y", "--no-install-recommends", name] for name in BROWSERS[:2])):
            if chromium() is None:
                subprocess.run(["apt-get", "-qq", *command], check=False, timeout=600, **quiet)
    return chromium()


if __name__ == "__main__":
    if install() is None:
        sys.stderr.write(
            "\n*** No Chromium here, and none could be installed: its tests are skipped, which fails the run.\n"
            "*** Try: apt-get install chromium-headless-shell\n"
            "*** or leave them out: make test ARGS='-m \"not release and not browser\"'\n\n"
        )
