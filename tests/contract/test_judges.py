"""The contract suite of judges: every check over every one that discovery finds. A new one is tested by existing."""

import pytest

from services.relevance_judge.judge import Judge
from shared.registry import servables
from tests.contract.checks.judges import Bench, judge_checks

FOUND = {name: kind for name, kind in servables("relevance-judge").items() if issubclass(kind, Judge)}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=f"{name}-{check.__name__.removeprefix('check_')}")
        for name, kind in FOUND.items()
        for check in judge_checks(kind)
    ],
)
def test_judge(name, check):
    check(Bench(FOUND[name]))
