"""All linters run, whatever the others find; one that finds something fails the whole, and is quoted."""

import sys

from tests.lint.__main__ import main


def say(text: str, status: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"print('it says {text}'); raise SystemExit({status})")


def test_each_linter_runs_and_the_findings_are_printed(capsys):
    assert main((say("bad", 3), say("good"), say("worse", 1))) == 1
    out = capsys.readouterr().out
    assert "it says bad\n" in out
    assert "it says worse\n" in out
    assert "it says good\n" not in out
    assert [out.count(words) for words in ("fails with 3 (", "fails with 1 (", "finds nothing (")] == [1, 1, 1]


def test_nothing_found_is_0(capsys):
    assert main((say("good"), say("fine"))) == 0
    assert capsys.readouterr().out.count("\n") == 2
