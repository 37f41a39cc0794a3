"""The contract suite of experiments: every check over every one that is found. A new one is tested by existing."""

import pytest
import torch

from services.interpretability.core.experiment import Experiment
from shared.registry import servables
from tests.contract.checks.experiments import Machines, experiment_checks

FOUND = {name: kind for name, kind in servables("interpretability").items() if issubclass(kind, Experiment)}


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Machines by experiment: all checks of one share its undisturbed report."""
    torch.set_num_threads(1)
    return {name: Machines(kind, tmp_path_factory.mktemp(name)) for name, kind in FOUND.items()}


def test_no_two_experiments_share_a_path():
    assert FOUND
    routes = [kind.route for kind in FOUND.values()]
    assert len(set(routes)) == len(routes)


CASES = [
    pytest.param(name, check, id=f"{name}-{check.__name__.removeprefix('check_')}")
    for name, kind in FOUND.items()
    for check in experiment_checks(kind)
]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_experiment(name, check, machines):
    check(machines[name])
