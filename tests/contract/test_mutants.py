"""The suite has teeth: every mutant is refused by the check that is there for it, and right plug-ins by none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.registry import LoadContext, Servable, servables
from shared.registry.discovery import SERVICES
from tests.contract.checks.experiments import Machines, experiment_checks
from tests.contract.checks.judges import Bench, judge_checks
from tests.contract.checks.kinds import applicable
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.servables import SERVABLE_CHECKS
from tests.contract.checks.text import TEXT_CHECKS
from tests.contract.language_model import endpoint
from tests.contract.mutants.experiments import RIGHT_EXPERIMENTS, WRONG_EXPERIMENTS
from tests.contract.mutants.judges import RIGHT_JUDGES, WRONG_JUDGES
from tests.contract.mutants.servables import RIGHT_SERVABLES, WRONG_SERVABLES
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


def _pairs(mutants: Mapping[Any, Any]) -> list[Any]:
    return [
        pytest.param(kind, check, id=f"{kind.__name__}-{check.__name__.removeprefix('check_')}")
        for kind, checks in mutants.items()
        for check in checks
    ]


def test_nobody_finds_a_mutant():
    found = {kind for service in SERVICES for kind in servables(service).values()}
    assert not found & {*WRONG_SERVABLES, *WRONG_EXPERIMENTS, *WRONG_JUDGES}


@pytest.mark.parametrize(("kind", "check"), _pairs(WRONG_SERVABLES))
def test_wrong_servable_is_refused(kind, check, home):
    with _loaded(kind, home) as loaded, pytest.raises(AssertionError):
        check(loaded)


@pytest.mark.parametrize(("kind", "check"), _pairs(WRONG_EXPERIMENTS))
def test_wrong_experiment_is_refused(kind, check, tmp_path):
    machines = Machines(kind, tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(machines)


@pytest.mark.parametrize(("kind", "check"), _pairs(WRONG_JUDGES))
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
