"""A skip that the list does not name fails the run, wherever it happens; one that it names does not."""

import subprocess
from pathlib import Path

import pytest
from packaging.markers import Marker

from tests.harness.skips import read_allowed_skips

ROOT = Path(__file__).parents[2]
WAYS = {
    "module": "import pytest\npytest.importorskip('no_such_module')\ndef test_a(): pass",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='no_such_module is missing')\ndef test_a(): pass",
    "fixture": "import pytest\n@pytest.fixture\ndef tool(): pytest.skip('no_such_module')\ndef test_a(tool): pass",
    "call": "import pytest\ndef test_a(): pytest.skip('no_such_module')", "parameter": (
    "import pytest\n@pytest.mark.parametrize('x', "
    "[1, pytest.param(2, marks=pytest.mark.skip(reason='no_such_module'))])\ndef test_a(x): pass" ),
}  # fmt: skip
PASSES = "def test_b(): pass"


def allow(pytester: pytest.Pytester, **entry: str | int) -> str:
    """Write a list with one entry; gives the option that names it."""
    lines = [f"{key} = {value!r}" for key, value in ({"enable": "install it"} | entry).items()]
    return f"--allowed-skips={pytester.makefile('.toml', allowed='[[skip]]' + chr(10) + chr(10).join(lines))}"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("named", ["test_*", "test_[mc]*", "none"])
def test_a_skip_that_is_not_listed_fails_the_run(named, workers, run_suite, pytester):
    files = {f"test_{way}": text for way, text in WAYS.items()}
    option = allow(pytester, test=named, reason="no_such_module")
    result = run_suite("skips", option, workers=workers, test_two=PASSES, **files)
    allowed = {way for way in WAYS if named == "test_*" or (named == "test_[mc]*" and way[0] in "mc")}
    assert result.ret == (pytest.ExitCode.OK if allowed == WAYS.keys() else pytest.ExitCode.TESTS_FAILED)
    lines = result.stdout.lines
    assert {way for way in WAYS if any(line.startswith(f"test_{way}.py:") for line in lines)} == WAYS.keys() - allowed
    result.assert_outcomes(skipped=5, passed=2)


def test_an_entry_allows_its_reason_and_number_alone(run_suite, pytester):
    option = allow(pytester, test="test_one.py*", reason="needs a GPU")
    assert run_suite("skips", option, test_one=WAYS["call"]).ret == pytest.ExitCode.TESTS_FAILED
    many = "import pytest\n@pytest.mark.parametrize('x', [1, 2, 3])\ndef test_a(x): pytest.skip('no tool')"
    option = allow(pytester, test="test_one.py*", reason="no tool", most=2)
    result = run_suite("skips", option, test_one=many)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["test_one.py::test_a[[]3]: no tool (more than the 2 that are allowed)"])
    result = run_suite("skips", option, "-k", "not 3", test_one=many)
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.parametrize(("where", "expected"), [("python_version < '3'", 1), ("python_version > '3'", 0)])
def test_an_entry_holds_where_its_marker_does(where, expected, run_suite, pytester):
    option = allow(pytester, test="*", reason="no_such_module", where=where)
    assert run_suite("skips", option, test_one=WAYS["call"]).ret == expected


def test_each_entry_of_the_list_is_needed_and_says_how_to_run_the_tests():
    files = subprocess.run(["git", "ls-files", "*tests/*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = {name: (ROOT / name).read_text("utf8") for name in files.stdout.split() if "harness" not in name}
    for entry in read_allowed_skips():
        file, _, name = entry.test.partition("::")
        name = name.partition("(")[0].rstrip("*")
        assert any(Path(one).match(file) and f"def {name}" in texts[one] for one in texts), (
            f"{entry.test}: no such test"
        )
        assert any(entry.reason in text for text in texts.values()), f"{entry.test}: no test says {entry.reason!r}"
        assert len(entry.reason) > 5, f"{entry.test}: the reason would cover anything"
        assert len(entry.enable) > 10, entry.test
        assert not entry.where or Marker(entry.where)
