"""Tests that hold a clock may fail once: `@pytest.mark.timed("why only a clock can tell")`. Nothing else is run again.

The report lists each test that was run again with its reason, since a test that needs it often is a bug.
"""

from collections import Counter

import pytest

HOW = 'Mark it `timed("one sentence why only a clock can tell")`.'


def pytest_configure(config: pytest.Config) -> None:
    """Refuse reruns of everything; count those of timed tests where the report is printed."""
    if any(config.getoption(name) for name in ("reruns", "force_reruns")) or config.getini("reruns"):
        raise pytest.UsageError("Only tests marked `timed` may be run again: leave out --reruns and --force-reruns.")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(RerunLedger(), "rerun-ledger")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let timed tests be run again; refuse marks without a reason, and tests that ask for reruns by another mark."""
    for item in items:
        if item.get_closest_marker("flaky"):
            raise pytest.UsageError(f"{item.nodeid} is marked `flaky`. {HOW}")
        if mark := item.get_closest_marker("timed"):
            reason = mark.args[0] if mark.args else None
            if not isinstance(reason, str) or not reason.strip():
                raise pytest.UsageError(f"{item.nodeid} gives no reason. {HOW}")
            item.add_marker(pytest.mark.flaky(reruns=1))
            item.user_properties.append(("timed", reason))


class RerunLedger:
    """Counts reruns in the process that prints the report."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if reason := dict(report.user_properties).get("timed"):
            self.reasons[report.nodeid] = str(reason)
        if report.outcome == "rerun":  # pytest-rerunfailures' own
            self.counts[report.nodeid] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.reasons:
            return
        terminalreporter.section("timed tests")
        terminalreporter.line(f"{len(self.reasons)} tests hold a clock; {self.counts.total()} reruns.")
        for test, count in sorted(self.counts.items()):
            terminalreporter.line(f"{count} × {test}: {self.reasons[test]}")
