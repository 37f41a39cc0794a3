"""Runs `fovea` in this process, as a shell would, for tests of what commands say."""

import csv
import functools
import io
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fovea.cli import plugins
from fovea.cli.main import main

Command = Callable[..., tuple[int, str, str]]
"""Words of a command, and its `stdin`, to its exit code, what it wrote and its standard error."""

# Every command reads the sources of all plug-ins, 0.1 s of a processor; here it does so once, except for a test's own.
_read, _read_once = plugins.read_first_line, functools.cache(plugins.read_first_line)
plugins.read_first_line = lambda point: (_read_once if point.dist else _read)(point)


def command_runner(monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[bytes]) -> Command:
    """A function that runs `fovea` with the words that it is given, on a terminal of 160 columns."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: Any, stdin: str | bytes = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fovea", *map(str, words)])
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        captured.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        sys.stdout.flush()
        out, err = (part.decode(errors="surrogateescape") for part in captured.readouterr())
        if ("--format", "csv") in itertools.pairwise(words):
            head, *rows = [*csv.reader(out.splitlines()), []]
            one = not rows or (len({*head, ""}) == len(head) + 1 and {*map(len, rows[:-1])} <= {len(head)})
            assert one, f"a program can't read this as one table:\n{out}"
        return code, out, err

    return run


def help_runner(monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[bytes]) -> Command:
    """Such a function on a plain terminal of 100 columns, without a gateway or a key; ends of lines are stripped."""
    command = command_runner(monkeypatch, captured)
    for name, value in {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("FOVEA_URL", "FOVEA_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: Any) -> tuple[int, str, str]:
        code, out, err = command(*words)
        return code, "\n".join(line.rstrip() for line in out.splitlines()), err

    return run
