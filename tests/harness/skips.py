"""A skip is allowed only where `tests/skips.toml` names it, with its reason and how to run the test after all.

Any other skip fails the run: a green run leaves out what the list says and nothing else.
"""

import fnmatch
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.markers import Marker

LIST = Path(__file__).parents[1] / "skips.toml"


@dataclass(frozen=True)
class AllowedSkip:
    test: str
    """Pattern of the node id, as of `fnmatch`; write parentheses for the brackets of parameters."""
    reason: str
    """Part of the message that the skip gives."""
    enable: str
    """The way to enable the tests."""
    where: str = ""
    """Environment marker (PEP 508) of the machines that may skip; empty: all."""

    def covers(self, test: str, message: str) -> bool:
        """Whether this entry names a test and its reason, on this machine."""
        plain = test.replace("[", "(").replace("]", ")")  # brackets are patterns to fnmatch
        here = not self.where or Marker(self.where).evaluate()
        return here and self.reason in message and fnmatch.fnmatchcase(plain, self.test)


def read_allowed_skips(path: Path = LIST) -> list[AllowedSkip]:
    return [AllowedSkip(**row) for row in tomllib.loads(path.read_text("utf8")).get("skip", [])]


def skip_message(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why a test or a module was skipped; None if it was not."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return message.removeprefix("Skipped: ")


class SkipLedger:
    """Collects skips in the process that prints the report."""

    def __init__(self, allowed: Sequence[AllowedSkip]) -> None:
        self._allowed = allowed
        self._skipped: dict[str, str] = {}

    def refused(self) -> list[tuple[str, str]]:
        """Each test that no entry covers, with its message."""
        return [
            (test, message)
            for test, message in sorted(self._skipped.items())
            if not any(one.covers(test, message) for one in self._allowed)
        ]

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if (message := skip_message(report)) is not None:
            self._skipped[report.nodeid] = message

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and self.refused():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if refused := self.refused():
            terminalreporter.section("skips that tests/skips.toml does not allow", red=True)
            for test, message in refused:
                terminalreporter.line(f"{test}: {message}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--allowed-skips", type=Path, metavar="FILE", default=LIST, help="the list of allowed skips")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        allowed = read_allowed_skips(config.getoption("--allowed-skips"))
        config.pluginmanager.register(SkipLedger(allowed), "skip-ledger")
