"""`--phases=FILE`: one JSON line for each phase (setup, call, teardown) of each test, for `python -m tests.slow`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--phases", type=Path, metavar="FILE", help="write the seconds of each test's phases to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that prints the report: xdist's workers send their reports there."""
    path = config.getoption("--phases")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(PhaseRecorder(path.open("w", encoding="utf8")), "phase-recorder")


class PhaseRecorder:
    """Writes each report as it arrives, so that a run that is cut off still tells what it measured."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write one phase."""
        worker = getattr(report, "worker_id", "master")
        row = {"test": report.nodeid, "phase": report.when, "seconds": round(report.duration, 4)}
        self._file.write(json.dumps({**row, "outcome": report.outcome, "worker": worker}) + "\n")
        self._file.flush()

    def pytest_unconfigure(self) -> None:
        """Close the file."""
        self._file.close()
