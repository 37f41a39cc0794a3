"""Garbage is collected between files when the process has grown, never within a test."""

import gc

import pytest

from tests.harness import memory

FILE = "def test_a(): pass\ndef test_b(): pass"


@pytest.fixture
def sizes(monkeypatch):
    """What the process is said to occupy: after collection, then twice at the end of each file."""
    told: list[int] = []
    monkeypatch.setattr(memory, "read_resident_bytes", lambda: told.pop(0) if len(told) > 1 else told[0])
    return told


@pytest.fixture
def collected(monkeypatch):
    """A line for each collection of garbage that the plug-in starts, and the freezing."""
    log: list[str] = []
    monkeypatch.setattr(memory.gc, "collect", lambda: log.append("collect"))
    monkeypatch.setattr(memory.gc, "freeze", lambda: log.append("freeze"))
    return log


def test_nothing_is_collected_while_the_process_has_its_size(run_suite, sizes, collected):
    sizes += [100, memory.GROWTH_BYTES + 100]
    assert run_suite("memory", test_one=FILE, test_two=FILE).ret == pytest.ExitCode.OK
    assert collected == ["collect", "freeze"]


def test_garbage_is_collected_once_after_a_file_that_grew(run_suite, sizes, collected):
    sizes += [100, memory.GROWTH_BYTES + 101, 900, 900]
    run_suite("memory", test_one=FILE, test_two=FILE)
    assert collected == ["collect", "freeze", "collect"]


def test_garbage_is_collected_in_tests_but_not_while_they_are_imported(run_suite):
    file = "import gc\nseen = gc.isenabled()\ndef test_a(): assert (seen, gc.isenabled()) == (False, True)"
    assert run_suite("memory", test_one=file).ret == pytest.ExitCode.OK
    broken = run_suite("memory", test_one="import gc\nassert not gc.isenabled()\nassert 0")
    assert broken.ret == pytest.ExitCode.INTERRUPTED
    assert gc.isenabled()
