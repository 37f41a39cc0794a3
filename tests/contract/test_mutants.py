"""The contract finds wrong objects and unequal results."""

import base64
from contextlib import closing

import numpy as np
import pytest

from shared.registry import LoadContext
from shared.vision.draw import encode
from tests.contract.checks.experiments import Machines
from tests.contract.checks.judges import Bench
from tests.contract.checks.kinds import cases
from tests.contract.checks.loaded import Loaded
from tests.contract.mutants import WRONG_EXPERIMENTS, WRONG_JUDGES, WRONG_SERVABLES
from tests.contract.sameness import differences
from tests.contract.toys import adopt_weights, write_toys


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder for all, with the weights of the toys that mutants are made from."""
    folder = tmp_path_factory.mktemp("mutants")
    write_toys(folder / "toys")
    for kind in WRONG_SERVABLES:
        adopt_weights(kind)
    return folder


DEAR = {"OtherModelAnswers", "IgnoresOneOption"}  # refused after seconds


@pytest.mark.parametrize(("kind", "check"), cases(WRONG_SERVABLES, lambda kind, _: kind.__name__ not in DEAR))
def test_wrong_servable_is_refused(kind, check, home):
    place = LoadContext(cache=home / "cache", weights=home / "weights", threads=1)
    with closing(kind.load(place)) as servable, pytest.raises(AssertionError):
        check(Loaded(servable, place))


@pytest.mark.parametrize(("kind", "check"), cases(WRONG_EXPERIMENTS))
def test_wrong_experiment_is_refused(kind, check, tmp_path):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(Machines(kind, tmp_path))


@pytest.mark.parametrize(("kind", "check"), cases(WRONG_JUDGES))
def test_wrong_judge_is_refused(kind, check):
    with pytest.raises(AssertionError):
        check(Bench(kind))


def test_pictures_are_compared_by_their_pixels():
    page = np.zeros((50, 50, 3), np.uint8)
    near, far = page.copy(), page.copy()
    near[0, 0], far[:5] = 255, 255
    one, two, three = ({"mask": base64.b64encode(encode(p)).decode()} for p in (page, near, far))
    assert (differences(one, two), len(differences(one, two, tolerance=0))) == ([], 1)
    assert len(differences(one, three)) == 1
