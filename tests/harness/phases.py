"""`--phases=FILE`: the seconds of each test's set-up, call and teardown, one JSON line per phase.

JUnit's times add set-up and teardown to the test that happens to pay for a file's fixtures. `tests.slow` needs them
apart, and with the fixtures that several tests share by name; `tests.report` writes its page from this file.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from _pytest.fixtures import FixtureDef, SubRequest

from tests.harness.skips import skip_message

COSTLY_S = 0.01
"""Shared fixtures that take less are not worth a word."""
LEFT_OUT = ("e2e", "browser", "release")
"""Marks of tests that `make check` leaves out, however quick they are."""

_PAID = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--phases", type=Path, metavar="FILE", help="write the seconds of each test's phases to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Measure where tests run, and record in the process that prints the report: xdist's workers report to it."""
    if path := config.getoption("--phases"):
        config.pluginmanager.register(FixtureClock(), "fixture-clock")
        if not hasattr(config, "workerinput"):
            path.parent.mkdir(parents=True, exist_ok=True)
            config.pluginmanager.register(PhaseRecorder(path.open("w", encoding="utf8")), "phase-recorder")


def name_shared(fixture: FixtureDef[Any], item: pytest.Item) -> str | None:
    """Name a fixture that outlives its test by where it lives; None if it ends with the test."""
    if fixture.scope == "function":
        return None
    file = item.nodeid.partition("::")[0]
    return f"{file if fixture.scope in {'module', 'class'} else fixture.baseid}::{fixture.argname}"


class FixtureClock:
    """Adds to each set-up's report which shared fixtures it built, in how many seconds, and which it uses."""

    def __init__(self) -> None:
        self._building = 0
        self._costly: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: FixtureDef[Any], request: SubRequest) -> Iterator[object]:
        """Measure a shared fixture; those that it asks for meanwhile belong to it."""
        item = request._pyfuncitem
        if (name := name_shared(fixturedef, item)) is None or self._building:
            return (yield)
        began, self._building = time.perf_counter(), 1
        try:
            return (yield)
        finally:
            self._building = 0
            if (seconds := time.perf_counter() - began) >= COSTLY_S:
                self._costly.add(name)
                paid = item.stash.setdefault(_PAID, {})
                paid[name] = round(paid.get(name, 0) + seconds, 4)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        report = yield
        if report.when == "setup":
            known = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
            used = self._costly.intersection(name_shared(each[-1], item) for each in known.values())
            marks = [name for name in LEFT_OUT if item.get_closest_marker(name)]
            report.shared = {"paid": item.stash.get(_PAID, {}), "uses": sorted(used), "marks": marks}
        return report


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
        if not self._collected:
            self._collected = True
            self._write_run("collection", "passed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        more: dict[str, Any] = {key: value for key, value in report.user_properties if key == "timed"}
        more |= {key: value for key, value in getattr(report, "shared", {}).items() if value}
        if (message := skip_message(report)) is not None:
            more["message"] = message
        worker = getattr(report, "worker_id", "master")
        self._write(
            test=report.nodeid, phase=report.when, seconds=round(report.duration, 4), outcome=report.outcome,
            worker=worker, **more,
        )  # fmt: skip

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if (message := skip_message(report)) is not None:
            facts = {"phase": "collection", "seconds": 0.0, "outcome": "skipped", "worker": "master"}
            self._write(test=report.nodeid, message=message, **facts)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._write_run("run", "passed" if session.exitstatus == pytest.ExitCode.OK else "failed")

    def pytest_unconfigure(self) -> None:
        self._file.close()
