"""The contract finds wrong objects and unequal results."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from shared.registry import LoadContext, Servable
from shared.vision.draw import encode
from tests.contract.checks.experiments import Machines, experiment_checks
from tests.contract.checks.judges import Bench, judge_checks
from tests.contract.checks.kinds import applicable, cases
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.servables import SERVABLE_CHECKS
from tests.contract.checks.text import TEXT_CHECKS
from tests.contract.language_model import endpoint
from tests.contract.mutants.experiments import RIGHT_EXPERIMENTS, WRONG_EXPERIMENTS
from tests.contract.mutants.judges import RIGHT_JUDGES, WRONG_JUDGES
from tests.contract.mutants.servables import RIGHT_SERVABLES, WRONG_SERVABLES
from tests.contract.sameness import differences
from tests.contract.toys import adopt_weights, write_toys

Check = Callable[[Any], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder for all, with the weights of the toys that mutants are made from."""
    folder = tmp_path_factory.mktemp("mutants")
    write_toys(folder / "toys")
    for kind in (*WRONG_SERVABLES, *RIGHT_SERVABLES):
        adopt_weights(kind)
    return folder


@contextmanager
def _loaded(kind: type[Servable[Any, Any]], home: Path) -> Iterator[Loaded]:
    with endpoint() as url:
        place = LoadContext(cache=home / "cache", weights=home / "weights", threads=1, options={"judge_base_url": url})
        servable = kind.load(place)
        yield Loaded(servable, place)
        servable.close()


@pytest.mark.parametrize(("kind", "check"), cases(WRONG_SERVABLES))
def test_wrong_servable_is_refused(kind, check, home):
    with _loaded(kind, home) as loaded, pytest.raises(AssertionError):
        check(loaded)


@pytest.mark.parametrize(("kind", "check"), cases(WRONG_EXPERIMENTS))
def test_wrong_experiment_is_refused(kind, check, tmp_path):
    machines = Machines(kind, tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(machines)


@pytest.mark.parametrize(("kind", "check"), cases(WRONG_JUDGES))
def test_wrong_judge_is_refused(kind, check):
    with pytest.raises(AssertionError):
        check(Bench(kind))


@pytest.mark.parametrize("kind", [*RIGHT_SERVABLES, *RIGHT_EXPERIMENTS, *RIGHT_JUDGES])
def test_right_plug_in_is_a_right_servable(kind, home):
    with _loaded(kind, home) as loaded:
        for check in applicable((*SERVABLE_CHECKS, *TEXT_CHECKS), kind):
            check(loaded)


@pytest.mark.parametrize("kind", RIGHT_EXPERIMENTS)
def test_right_experiment_passes(kind, tmp_path):
    machines = Machines(kind, tmp_path)
    for check in experiment_checks(kind):
        check(machines)


@pytest.mark.parametrize("kind", RIGHT_JUDGES)
def test_right_judge_passes(kind):
    for check in judge_checks(kind):
        check(Bench(kind))


class Answer(BaseModel):
    score: float = 1.0
    text: str = "a"
    rows: list[int] = [1, 2]
    times: float = 0.0


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        (Answer(), Answer(times=9.0), 0),
        (Answer(), Answer(score=1.00001), 0),
        (Answer(), Answer(score=1.001), 1),
        (Answer(), Answer(text="b"), 1),
        (Answer(), Answer(rows=[1]), 1),
        (Answer(), Answer(rows=[1, 3]), 1),
        ([Answer()], [Answer(), Answer()], 1),
        ([Answer(), Answer(text="b")], [Answer(), Answer(text="c")], 1),
        ({"a": 1}, {"b": 1}, 1),
        (Answer(score=float("nan")), Answer(), 1),
    ],
)
def test_differences_are_counted(first, second, count):
    assert len(differences(first, second)) == count


def test_pictures_are_compared_by_their_pixels():
    page = np.zeros((50, 50, 3), np.uint8)
    near, far = page.copy(), page.copy()
    near[0, 0], far[:5] = 255, 255
    one, two, three = ({"mask": base64.b64encode(encode(p)).decode()} for p in (page, near, far))
    assert differences(one, two) == []
    assert len(differences(one, two, tolerance=0)) == 1
    assert len(differences(one, three)) == 1
