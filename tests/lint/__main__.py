"""`make lint`: runs all linters, two at a time, and says what each found and how long it took.

The longest begin first. A linter that finds nothing prints one line.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LINTERS = (
    (BIN / "mypy", "--num-workers", "2"), (sys.executable, "-m", "tests.drift"),
    (sys.executable, "-m", "tests.claims"), (BIN / "fovea", "docs", "--build", "out/site"),
    (sys.executable, "-m", "tests.lint.style"), (BIN / "lint-imports",), (sys.executable, "-m", "tests.lint.names"),
    (BIN / "ruff", "check", "."), (sys.executable, "-m", "tests.lint.circles"),
    (sys.executable, "-m", "tests.lint.budget"), (sys.executable, "-m", "tests.lint.devices"),
    (BIN / "ruff", "format", "--check", "."),
)  # fmt: skip
AT_ONCE = 2


def run(command: tuple[str | Path, ...]) -> tuple[int, str]:
    """Run a linter; its exit status, and what to print."""
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "FORCE_COLOR": "0"}, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    name = " ".join(Path(word).name if n == 0 else str(word) for n, word in enumerate(command))
    verdict = "finds nothing" if done.returncode == 0 else f"fails with {done.returncode}"
    text = "" if done.returncode == 0 else f"{done.stdout.rstrip()}\n"
    return done.returncode, f"{text}{name} {verdict} ({time.monotonic() - began:.0f} s)\n"


def main(linters: tuple[tuple[str | Path, ...], ...] = LINTERS) -> int:
    """Run them; 1 if any found something."""
    failed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for status, text in (one.result() for one in as_completed([pool.submit(run, each) for each in linters])):
            failed |= status != 0
            sys.stdout.write(text)
            sys.stdout.flush()
    return failed


if __name__ == "__main__":
    sys.exit(main())
