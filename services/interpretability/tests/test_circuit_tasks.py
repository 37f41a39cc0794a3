"""Tasks: prompts of equal length, answers of one token, refusals that name the line; and IOI on the real model."""

import json

import pytest

from fovea.errors import InvalidOption, Malformed
from services.interpretability.causal.activation_cache import run_with_cache
from services.interpretability.causal.circuit_tasks import (
    group_by_length,
    make_coloured_objects,
    make_indirect_objects,
    parse_pairs,
)
from services.interpretability.experiments.circuits import Circuits, CircuitsSpec, logit_difference
from services.interpretability.tests.conftest import read
from shared.registry import CallContext

LINE = {"clean": "abc", "corrupt": "abd", "correct": "x", "wrong": ["y", "z"]}


def test_own_pairs_become_cases_by_length(tiny):
    lines = [LINE, {**LINE, "clean": "abcd", "corrupt": "abce"}, LINE]
    found = group_by_length(parse_pairs(tiny, "\n".join(map(json.dumps, lines))))
    assert ([len(batch.cases) for batch in found], len(found[0].answers[0])) == ([2, 1], 3)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({**LINE, "corrupt": "abcd"}, InvalidOption), ({**LINE, "wrong": []}, InvalidOption),
        ({**LINE, "correct": ""}, InvalidOption), ({"clean": "a"}, Malformed), ([1], Malformed),
    ],
)  # fmt: skip
def test_bad_line_is_refused_by_its_number(tiny, line, error):
    with pytest.raises(error, match="Line 2") as caught:
        parse_pairs(tiny, json.dumps(LINE) + "\n" + json.dumps(line))
    assert caught.value.field == "pairs"


def test_task_that_the_tokenizer_cannot_hold_is_refused(tiny):
    with pytest.raises(InvalidOption, match="names as one token"):
        make_indirect_objects(tiny, 4)
    with pytest.raises(InvalidOption, match="several tokens"):
        make_coloured_objects(tiny, 4)


def test_unsolved_task_carries_its_warning(context):
    study = Circuits.load(context)
    spec = CircuitsSpec(lm="tiny", task="own", pairs=json.dumps({**LINE, "correct": "~", "wrong": "a"}), knockout=0)
    (report,) = study.predict([spec], CallContext())
    assert any("Task not solved" in warning for warning in report.warnings)


def test_override_without_wrong_answers_in_the_prompt_is_refused(context):
    study = Circuits.load(context)
    spec = CircuitsSpec(lm="tiny", task="own", pairs=json.dumps(LINE), knockout=0, override=[[0, 0]])
    (error,) = study.predict([spec], CallContext())
    assert isinstance(error, InvalidOption)
    assert error.field == "override"


def test_prompts_of_the_real_tokenizer_are_minimal_pairs(smollm2):
    for case in (*make_indirect_objects(smollm2, 8), *make_indirect_objects(smollm2, 4, counterfactual="abc")):
        assert len(case.clean) == len(case.corrupt)
        assert {"IO", "S1", "S2", "END"} <= set(case.marks)
        assert (case.clean[case.marks["IO"][0]], case.clean[case.marks["S2"][0]]) == (case.correct, case.wrong[0])
    for case in make_coloured_objects(smollm2, 6):
        assert (len(case.clean), len(set(case.wrong) | {case.correct})) == (len(case.corrupt), 3)
        assert case.text.endswith("A:")


def test_orders_alternate_and_seeds_decide(smollm2):
    found = make_indirect_objects(smollm2, 6, seed=1)
    assert [case.kind for case in found] == ["ABBA", "BABA"] * 3
    assert found == make_indirect_objects(smollm2, 6, seed=1) != make_indirect_objects(smollm2, 6, seed=2)


def test_indirect_objects_on_the_real_model_equal_the_golden_ones(smollm2):
    for facts in read("smollm2_ioi.json")["prompts"][2:5]:
        answers = [smollm2.encode(f" {facts[who]}")[0] for who in ("io", "s")]
        last = run_with_cache(smollm2.model, smollm2.tensor([smollm2.encode(facts["prompt"])])).last
        assert logit_difference(last, smollm2.tensor([answers])) == pytest.approx(facts["logit_diff"], abs=0.02)
        assert (int(last.argmax()) == answers[0]) is facts["top1_is_io"]
