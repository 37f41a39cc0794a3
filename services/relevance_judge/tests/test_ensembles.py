"""Ensembles follow their stated tie and rounding rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.metrics.ensembles import average, majority, median

Grades = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def test_votes_with_gaps_combine_as_the_oracle_says(golden):
    case = golden("agreement_vectors.json")["votes"]
    votes = case["matrix"]
    for tie, expected in case["majority"].items():
        assert (majority(votes, tie=tie), majority(np.asarray(votes, float), tie=tie)) == (expected, expected)
    assert average(votes) == case["average_half_up"]
    assert (average(votes, rounding="half_even"), median(votes)) == (case["average_half_even"], case["median"])


def test_ensembles_of_released_sets_reach_the_stated_agreement(golden, released):
    told = golden("llmjudge/ensembles.json")
    reference = released(told["reference"])
    for name, row in told["sets"].items():
        members = [released(member) for member in row["members"]]
        votes = [[min(max(labels[pair], 0), 3) for pair in reference] for labels in members]
        made = {f"majority_{tie}": majority(votes, tie=tie) for tie in ("min", "max", "average", "median")}
        made |= {f"average_{r}": average(votes, rounding=r) for r in ("half_up", "half_even")} | {
            "median": median(votes)
        }
        for how, grades in made.items():
            found = agree(reference, dict(zip(reference, grades, strict=True)))
            assert found.counts == row[how]["counts"], (name, how)
            assert found.kappa == pytest.approx(row[how]["kappa"], abs=1e-9)
            assert found.alpha == pytest.approx(row[how]["alpha"], abs=1e-9)


@given(Grades, st.integers(1, 5), st.sampled_from(["average", "min", "max", "median", "random"]))
def test_identical_voters_are_the_voter(grades, judges, tie):
    votes = [grades] * judges
    assert majority(votes, tie=tie) == average(votes) == median(votes) == grades


@given(st.data(), st.sampled_from(["average", "min", "max", "median", "random"]))
def test_the_order_of_judges_does_not_matter_even_for_random_ties(data, tie):
    items = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=6, max_size=6)
    votes = data.draw(st.lists(items, min_size=2, max_size=5))
    moved = data.draw(st.permutations(votes))
    assert majority(votes, tie=tie, seed=3) == majority(moved, tie=tie, seed=3)


def test_random_ties_are_seeded_and_use_every_tied_grade():
    votes = [[0] * 40, [3] * 40]
    assert majority(votes, tie="random", seed=1) == majority(votes, tie="random", seed=1)
    assert set(majority(votes, tie="random", seed=1)) == {0, 3}
