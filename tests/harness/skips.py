"""A skip is allowed only where `tests/skips.toml` names it, with its reason and how to run the test after all.

A test that is skipped without being named there fails the run: a green run then means that nothing was left out but
what this list says.
"""

from __future__ import annotations

import fnmatch
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

LIST = Path(__file__).parents[1] / "skips.toml"


class AllowedSkip(NamedTuple):
    """Tests that may be skipped for one reason."""

    test: str
    """Pattern of the node id, as of `fnmatch`."""
    reason: str
    """Part of the message that the skip gives."""
    enable: str
    """What makes the tests run."""


def read_allowed_skips(path: Path = LIST) -> list[AllowedSkip]:
    """Read the list."""
    return [AllowedSkip(**row) for row in tomllib.loads(path.read_text("utf8")).get("skip", [])]


def is_allowed(allowed: list[AllowedSkip], test: str, message: str) -> bool:
    """Whether an entry names this test and this reason."""
    plain = test.replace("[", "(").replace("]", ")")  # brackets are patterns to fnmatch
    return any(fnmatch.fnmatchcase(plain, one.test) and one.reason in message for one in allowed)


class SkipLedger:
    """Collects skips in the process that prints the report."""

    def __init__(self, allowed: list[AllowedSkip]) -> None:
        self._allowed = allowed
        self.unknown: dict[str, str] = {}

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not is_allowed(self._allowed, report.nodeid, message):
                self.unknown[report.nodeid] = message

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that was skipped."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that was skipped."""
        self._note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run."""
        if self.unknown and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the skips that nobody allowed."""
        if self.unknown:
            terminalreporter.section("skips that tests/skips.toml does not allow", red=True)
            for test, message in sorted(self.unknown.items()):
                terminalreporter.line(f"{test}: {message}")


def pytest_configure(config: pytest.Config) -> None:
    """Check where the report is printed."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipLedger(read_allowed_skips()), "skip-ledger")
