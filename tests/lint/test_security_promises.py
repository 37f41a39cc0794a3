"""SECURITY.md promises what tests prove: each promise names a test, and each test that is named is there."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE)


def list_promises() -> dict[str, list[str]]:
    text = (ROOT / "SECURITY.md").read_text("utf8")
    rows = {row["promise"]: re.findall(r"`(test_\w+)`", row["tests"]) for row in ROW.finditer(text)}
    return {promise: tests for promise, tests in rows.items() if promise not in {"promise", "---"}}


def list_tests() -> set[str]:
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    found: set[str] = set()
    for name in files.stdout.splitlines():
        if "/test" in f"/{name}":
            found |= set(re.findall(r"^\s*(?:async )?def (test_\w+)", (ROOT / name).read_text("utf8"), re.MULTILINE))
    return found


def test_each_promise_names_tests_that_exist():
    promises, tests = list_promises(), list_tests()
    assert len(promises) > 30
    assert {promise for promise, named in promises.items() if not named} == set(), "promises without a test"
    assert {name for named in promises.values() for name in named} - tests == set(), "tests that are not there"
