"""Runs of pytest in a folder of their own, with one plug-in of the harness: what its tests look at."""

import pytest

PLUGINS = [word for name in ("xdist", "pytest_rerunfailures") for word in ("-p", name)]
"""Others cost each process of such a run a second or two."""


@pytest.fixture
def run_suite(pytester, monkeypatch):
    """Run files of tests, given by name, with a plug-in; 0 workers: in this process."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(plugin: str, *options: str, workers: int = 0, **files: str) -> pytest.RunResult:
        marks = ("timed(reason): holds a clock", "e2e: starts a product")
        pytester.makeini("[pytest]\nmarkers =\n  " + "\n  ".join(marks))
        pytester.makepyfile(**files)
        return pytester.runpytest_inprocess(*PLUGINS, "-p", f"tests.harness.{plugin}", "-n", str(workers), *options)

    return run
