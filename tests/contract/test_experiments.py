"""The contract suites of experiments and judges: every check over every one that discovery finds."""

import pytest
import torch

from services.interpretability.core.experiment import Experiment
from services.relevance_judge.judge import Judge
from shared.registry import servables
from tests.contract.checks.experiments import EXPERIMENT_CHECKS, Machines
from tests.contract.checks.judges import JUDGE_CHECKS, Bench
from tests.contract.checks.kinds import cases_of

DEAR = dict.fromkeys(
    ("acdc", "attention-influence", "deconstruction", "deconstruction-study", "edge-attribution", "head-plans",
     "retrieval-heads", "sparsity"), "another_seed same_seed cancelled cells_of_other killed",
) | dict.fromkeys(("query-likelihood", "similarity"), "nothing_is_kept list_of_pairs")  # fmt: skip
"""Beginnings of the names of checks that only `make test-all` makes."""


def _always(name, check):
    return not check.__name__.startswith(tuple(f"check_{begin}" for begin in DEAR.get(name, "").split()))


FOUND = {name: kind for name, kind in servables("interpretability").items() if issubclass(kind, Experiment)}


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Machines by experiment: all checks of one share its undisturbed report."""
    torch.set_num_threads(1)
    return {name: Machines(kind, tmp_path_factory.mktemp(name)) for name, kind in FOUND.items()}


def test_experiments_are_probes_each_with_a_path_of_its_own():
    assert {kind.card.task for kind in FOUND.values()} == {"probe"}
    routes = [kind.route for kind in FOUND.values()]
    assert all(routes)
    assert len(set(routes)) == len(routes)


@pytest.mark.parametrize(("name", "check"), cases_of(FOUND, EXPERIMENT_CHECKS, _always))
def test_experiment(name, check, machines):
    check(machines[name])


JUDGES = {name: kind for name, kind in servables("relevance-judge").items() if issubclass(kind, Judge)}


@pytest.mark.parametrize(("name", "check"), cases_of(JUDGES, JUDGE_CHECKS, _always))
def test_judge(name, check):
    check(Bench(JUDGES[name]))
