"""The contract suite of judges: every check over every one that discovery finds. A new one is tested by existing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.relevance_judge.judge import Judge
from shared.registry import servables
from tests.contract.checks.judges import JUDGE_CHECKS, Bench

FOUND = {name: kind for name, kind in servables("relevance-judge").items() if issubclass(kind, Judge)}


def test_somebody_judges():
    assert FOUND


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("check", JUDGE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_judge(name: str, check: Callable[[Bench], None]) -> None:
    check(Bench(FOUND[name]))
