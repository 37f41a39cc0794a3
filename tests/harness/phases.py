"""`--phases=FILE`: the seconds of each test's set-up, call and teardown, one JSON line per phase.

JUnit's times add set-up and teardown to the test that happens to pay for a file's fixtures. `tests.slow` needs them
apart, and `tests.report` writes its page from this file.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.harness.skips import skip_message


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
        self._began = time.time()
        self._collected = False

    def _write(self, **row: Any) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _write_run(self, phase: str, outcome: str) -> None:
        """Write what belongs to the run as a whole: such rows name no test."""
        seconds = round(time.time() - self._began, 1)
        self._write(test="", phase=phase, seconds=seconds, outcome=outcome, worker="master", began=int(self._began))

    def pytest_runtest_logstart(self) -> None:
        """Write what passed before the first test."""
        if not self._collected:
            self._collected = True
            self._write_run("collection", "passed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write one phase."""
        more: dict[str, str] = {str(key): str(value) for key, value in report.user_properties if key == "timed"}
        if (message := skip_message(report)) is not None:
            more["message"] = message
        worker = getattr(report, "worker_id", "master")
        self._write(
            test=report.nodeid, phase=report.when, seconds=round(report.duration, 4), outcome=report.outcome,
            worker=worker, **more,
        )  # fmt: skip

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write a module that was skipped as a whole."""
        if (message := skip_message(report)) is not None:
            self._write(
                test=report.nodeid, phase="collection", seconds=0.0, outcome="skipped", worker="master", message=message
            )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write how long the run took, and how it ended."""
        outcome = "passed" if session.exitstatus == pytest.ExitCode.OK else "failed"
        self._write_run("run", outcome)

    def pytest_unconfigure(self) -> None:
        """Close the file."""
        self._file.close()
