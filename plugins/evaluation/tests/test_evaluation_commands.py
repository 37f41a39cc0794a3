"""Commands of `fovea judge` that the plug-in brings."""

import pytest

from tests.command import command_runner


@pytest.mark.parametrize("verb", ["rankings", "leaderboard"])
def test_help_says_what_it_said(monkeypatch, capfdbinary, snapshot, verb):
    fovea = command_runner(monkeypatch, capfdbinary)
    for name, value in {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("FOVEA_URL", "FOVEA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = fovea("judge", verb, "--help")
    assert (code, err) == (0, "")
    assert "\n".join(line.rstrip() for line in out.splitlines()) == snapshot
