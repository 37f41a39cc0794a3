"""Tests that hold a clock may fail once: `@pytest.mark.timed("why only a clock can tell")`. Nothing else is run again.

The report lists each test that was run again with its reason, since a test that needs it often is a bug.
"""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests marked `timed` fail once; refuse a mark that gives no reason."""
    for item in items:
        if mark := item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=1))
            item.user_properties.append(("timed", mark.args[0] if mark.args else "no reason"))


class RerunLedger:
    """Counts reruns in the process that prints the report."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.timed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the reason of each timed test and each rerun."""
        for key, value in report.user_properties:
            if key == "timed":
                self.timed.add(report.nodeid)
                self.reasons[report.nodeid] = value
        if report.outcome == "rerun":
            self.counts[report.nodeid] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many tests hold a clock, and which were run again."""
        terminalreporter.section("timed tests")
        terminalreporter.line(f"{len(self.timed)} tests hold a clock; {self.counts.total()} reruns.")
        for test, count in sorted(self.counts.items()):
            terminalreporter.line(f"{count} × {test}: {self.reasons.get(test, 'not marked timed')}")


def pytest_configure(config: pytest.Config) -> None:
    """Count where the report is printed."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(RerunLedger(), "rerun-ledger")
