"""Ensembles of judges: their rules and the judge that asks several."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fovea.errors import InvalidOption, NotFound
from services.relevance_judge import embeddings
from services.relevance_judge.batches import batch_runner, pair_selection
from services.relevance_judge.judge import Judge, open_calibrations
from services.relevance_judge.judges.ensemble import Ensemble
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.judges.similarity import Similarity
from services.relevance_judge.metrics.calibration import Calibration
from services.relevance_judge.metrics.ensembles import average, majority, median
from services.relevance_judge.prompt_template import get_template
from services.relevance_judge.schemas import EnsembleIn, Verdict
from services.relevance_judge.tests.conftest import judge_one
from services.relevance_judge.tests.fake_endpoint import FakeModel
from shared.lm.bundled_models import MINILM, MPNET
from shared.storage import ObjectStore


def test_votes_with_gaps_combine_as_the_oracle_says_and_random_ties_use_every_tied_grade(golden):
    case = golden("agreement_vectors.json")["votes"]
    votes = case["matrix"]
    for rated in (votes, np.asarray(votes, float)):
        assert {tie: majority(rated, tie=tie) for tie in case["majority"]} == case["majority"]
        for how in ("half_up", "half_even"):
            assert average(rated, rounding=how) == case[f"average_{how}"]
        assert (average(rated), median(rated)) == (case["average_half_up"], case["median"])
    votes = [[0] * 40, [3] * 40]
    assert set(majority(votes, tie="random", seed=1)) == {0, 3}


@given(st.data(), st.sampled_from(["average", "min", "max", "median", "random"]))
def test_the_order_of_judges_does_not_matter_even_for_random_ties(data, tie):
    items = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=6, max_size=6)
    votes = data.draw(st.lists(items, min_size=2, max_size=5))
    assert majority(votes, tie=tie, seed=3) == majority(data.draw(st.permutations(votes)), tie=tie, seed=3)


DIGITS = {"0": -3.0, "1": -2.0, "2": -0.5, "3": -1.5}
CUTS = Calibration(cuts=(-3, -2, -1.5), how="quantile", pairs=40, queries=8, mean=-2.0, spread=0.5)


def _one(judge: Judge, **options: Any) -> Verdict:
    return judge_one(
        judge, **{"pairs": [{"query": "moon tides", "passage": "the moon"}], "seed": 1, **options}
    ).results[0]


@pytest.fixture
def ensemble():
    return Ensemble(FakeModel(lambda _: "1", first=DIGITS).client())


def test_judges_of_all_kinds_vote_their_signals_are_shown_and_names_in_short_are_judges_or_templates(ensemble):
    members = ["direct", "log-odds", {"judge": "query-likelihood", "calibration": CUTS.model_dump()}]
    found = _one(ensemble, members=members, combine="median")
    assert (found.votes, found.grade, found.valid) == ([1, 2, 3], 2, True)
    assert found.signals is not None
    assert [signal is None for signal in found.signals] == [True, False, False]
    names = [f"{name}@{get_template(name).digest}" for name in ("direct", "digits", "query-lift")]
    assert found.template == ",".join(names)
    pairs = [[{"query": query, "passage": "p"}] for query in "abcdefgh"]
    assert {_one(ensemble, members=members[:2], tie="random", pairs=each).grade for each in pairs} == {1, 2}
    members = ["yes-no", "log-odds/digits", "log-odds"]
    given = EnsembleIn.model_validate({"query": "q", "passages": ["p"], "members": members}).members
    assert [(m.judge, m.template) for m in given] == [(None, "yes-no"), ("log-odds", "digits"), ("log-odds", None)]


def test_weights_count_in_averages_whatever_floats_make_of_them_and_sums_need_them_and_calibrations(ensemble):
    both = [{"template": "direct", "weight": 1}, {"judge": "log-odds", "weight": 3}]
    assert _one(ensemble, members=both, combine="average", rounding="half_even").grade == 2
    both[1]["weight"] = 0
    assert _one(ensemble, members=both, combine="average").grade == 1
    with pytest.raises(InvalidOption, match="calibration of each member"):
        _one(ensemble, members=["log-odds"], combine="signals")
    member = {"judge": "log-odds", "calibration": CUTS.model_dump(), "weight": 0}
    with pytest.raises(InvalidOption, match="weights"):
        _one(ensemble, members=[member], combine="signals")
    assert 0.1 * 1 + 0.4 * 2 < 1.5 * (0.1 + 0.1 + 0.4)
    assert average([[0, 3], [1, 2], [2, 1]], weights=[0.1, 0.1, 0.4]) == [2, 2]
    assert average([[1], [2], [3]], weights=[0.1, 0.1, 0.4], rounding="half_even") == [2]


def test_signals_are_added_in_standard_deviations_graded_by_the_sums_own_cuts_and_invalid_where_one_is_missing(
    ensemble,
):
    other = CUTS.model_copy(update={"mean": 1.0, "spread": 0.25})
    members = [
        {"judge": "query-likelihood", "template": "query-likelihood", "calibration": CUTS.model_dump()},
        {"judge": "log-odds", "calibration": other.model_dump(), "weight": 3},
    ]
    bare = _one(ensemble, members=members, combine="signals")
    assert bare.signals is not None
    likelihood, expected = bare.signals
    total = ((likelihood + 2.0) / 0.5 + 3 * (expected - 1.0) / 0.25) / 4
    assert (bare.signal, bare.valid, bare.reason) == (pytest.approx(total), False, "uncalibrated")
    cuts = {"cuts": [total - 1, total - 0.5, total + 1], "how": "quantile", "pairs": 40, "queries": 8}
    found = _one(ensemble, members=members, combine="signals", calibration=cuts)
    assert (found.grade, found.valid, found.flags) == (2, True, [])
    judge = Ensemble(FakeModel(lambda _: "?", first=DIGITS).client())
    members = [{**one, "calibration": CUTS.model_dump()} for one in ({"template": "direct"}, {"judge": "log-odds"})]
    found = _one(judge, members=members, combine="signals", retries=0)
    assert (found.grade, found.valid, found.reason) == (None, False, "no_signal")


@pytest.mark.parametrize(("members", "error"), [
    (["oracle"], NotFound), (["ensemble"], NotFound), ([{"weight": 1}], InvalidOption),
    (["log-odds/direct"], InvalidOption),
    *((members, ValidationError) for members in ([], ["direct"] * 9, [3], [{"who": 1}], "direct")),
])  # fmt: skip
def test_members_that_can_not_vote_are_refused(ensemble, members, error):
    with pytest.raises(error):
        _one(ensemble, members=members)


def test_kept_calibrations_are_looked_up_for_members_too(tmp_path):
    objects = ObjectStore.open(tmp_path.as_uri())
    open_calibrations(objects, "local").add("ql", CUTS.model_dump(mode="json"))
    judge = Ensemble(FakeModel(first=DIGITS).client(), objects)
    members = [{"judge": "query-likelihood", "calibration": "ql@1"}, {"judge": "log-odds", "calibration": "ql"}]
    assert _one(judge, members=members, combine="signals").signal is not None
    with pytest.raises(NotFound):
        _one(judge, members=[{"judge": "log-odds", "calibration": "ql@2"}])


def test_a_batch_of_an_ensemble_is_named_by_all_its_templates():
    judge, made = Ensemble(FakeModel().client()), []
    for members in (["direct"], ["direct", "words"]):
        request = EnsembleIn.model_validate({"query": "-", "passages": ["-"], "members": members})
        made.append(batch_runner.plan_batch(judge, request, pair_selection.cross_pairs({"1": "q"}, {"a": "p"}), "m"))
    assert [len(plan.templates) for plan in made] == [1, 2]
    assert made[0].settings != made[1].settings


@pytest.mark.parametrize(("judge", "more"), [(Similarity, {}), (Ensemble, {"members": ["direct", "similarity"]})])
def test_labels_of_other_embedders_are_not_taken_for_those_of_todays(monkeypatch, judge, more):
    request = judge.In.model_validate({"query": "-", "passages": ["-"], **more})
    plans = []
    for known in ({MINILM}, {MINILM, MPNET}):
        monkeypatch.setattr(embeddings, "bundled_embedder", known.__contains__)
        plans.append(batch_runner.plan_batch(judge(FakeModel().client()), request, [], None))
    assert plans[0].settings != plans[1].settings


def test_the_lift_takes_off_what_the_query_is_without_a_passage():
    judge = QueryLikelihood(FakeModel().client())
    lifted, plain = _one(judge), _one(judge, template="query-likelihood")
    assert plain.signal == plain.log_likelihood == pytest.approx((-1.0 - 5.0) / 2)  # `moon` was in the passage
    assert (lifted.log_likelihood, lifted.signal) == (pytest.approx(-3.0), pytest.approx(-3.0 - -5.0))
    assert lifted.tokens > plain.tokens
    pairs = [{"query": "moon tides", "passage": text} for text in ("the moon makes tides", "bread is baked")]
    verdicts = [_one(judge, pairs=[pair], template="query-likelihood").signal for pair in pairs]
    assert verdicts == pytest.approx([-1.0, -5.0])
