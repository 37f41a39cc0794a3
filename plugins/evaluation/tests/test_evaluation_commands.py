"""Commands of `fovea judge` that the plug-in brings."""

import pytest

from tests.command import help_runner


@pytest.mark.parametrize("verb", ["rankings", "leaderboard"])
def test_help_says_what_it_said(monkeypatch, capfdbinary, snapshot, verb):
    assert help_runner(monkeypatch, capfdbinary)("judge", verb, "--help") == (0, snapshot, "")
