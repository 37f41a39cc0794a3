"""Circuit experiments and their tasks."""

import io
import json
from typing import Any

import httpx2
import numpy as np
import pytest

from fovea.errors import InvalidOption, Malformed, TooLarge
from services.interpretability.causal.activation_cache import run_with_cache
from services.interpretability.causal.circuit_tasks import (
    group_by_length,
    make_coloured_objects,
    make_indirect_objects,
    parse_pairs,
)
from services.interpretability.core.report import Artefact, Report
from services.interpretability.experiments.activations import Activations
from services.interpretability.experiments.circuits import Circuits, CircuitsSpec, logit_difference
from services.interpretability.experiments.head_comparison import HeadComparison
from services.interpretability.rendering.render import render
from services.interpretability.tests.conftest import probing, read
from shared.lm.taps import trace
from shared.registry import CallContext
from tests.harness.language_model import share_language_model

LINE = {"clean": "abc", "corrupt": "abd", "correct": "x", "wrong": ["y", "z"]}


def test_own_pairs_become_cases_or_are_refused_where_the_tokenizer_cannot_hold_them(tiny):
    lines = [LINE, {**LINE, "clean": "abcd", "corrupt": "abce"}, LINE]
    found = group_by_length(parse_pairs(tiny, "\n".join(map(json.dumps, lines))))
    assert ([len(batch.cases) for batch in found], len(found[0].answers[0])) == ([2, 1], 3)
    with pytest.raises(InvalidOption, match="names as one token"):
        make_indirect_objects(tiny, 4)
    with pytest.raises(InvalidOption, match="several tokens"):
        make_coloured_objects(tiny, 4)


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


def test_unsolved_tasks_warn_and_overrides_without_wrong_answers_are_refused(context):
    study = Circuits.load(context)
    spec = CircuitsSpec(lm="tiny", task="own", pairs=json.dumps({**LINE, "correct": "~", "wrong": "a"}), knockout=0)
    (report,) = study.predict([spec], CallContext())
    assert any("Task not solved" in warning for warning in report.warnings)
    spec = CircuitsSpec(lm="tiny", task="own", pairs=json.dumps(LINE), knockout=0, override=[[0, 0]])
    (error,) = study.predict([spec], CallContext())
    assert isinstance(error, InvalidOption)
    assert error.field == "override"


def test_orders_alternate_and_prompts_of_the_real_tokenizer_are_minimal_pairs(smollm2):
    for case in (*make_indirect_objects(smollm2, 8), *make_indirect_objects(smollm2, 4, counterfactual="abc")):
        assert len(case.clean) == len(case.corrupt)
        assert {"IO", "S1", "S2", "END"} <= set(case.marks)
        assert (case.clean[case.marks["IO"][0]], case.clean[case.marks["S2"][0]]) == (case.correct, case.wrong[0])
    for case in make_coloured_objects(smollm2, 6):
        assert (len(case.clean), len(set(case.wrong) | {case.correct})) == (len(case.corrupt), 3)
        assert case.text.endswith("A:")
    found = make_indirect_objects(smollm2, 6, seed=1)
    assert [case.kind for case in found] == ["ABBA", "BABA"] * 3
    assert found == make_indirect_objects(smollm2, 6, seed=1) != make_indirect_objects(smollm2, 6, seed=2)


def test_indirect_objects_on_the_real_model_equal_the_golden_ones(smollm2):
    for facts in read("smollm2_ioi.json")["prompts"][2:5]:
        answers = [smollm2.encode(f" {facts[who]}")[0] for who in ("io", "s")]
        last = run_with_cache(smollm2.model, smollm2.tensor([smollm2.encode(facts["prompt"])])).last
        assert logit_difference(last, smollm2.tensor([answers])) == pytest.approx(facts["logit_diff"], abs=0.02)
        assert (int(last.argmax()) == answers[0]) is facts["top1_is_io"]


def ask(kind: Any, context: Any, **options: Any) -> Report:
    study = kind.load(context)
    (report,) = study.predict([study.In.model_validate({**kind.card.example, **options})], CallContext())
    if isinstance(report, Exception):
        raise report
    assert isinstance(report, Report)
    return report


def artefact(report: Report, name: str) -> Artefact:
    return next(one for one in report.artefacts if one.name == name)


def arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)


@pytest.mark.parametrize("naming", ["transformerlens", "modules", "fovea"])
def test_activations_are_the_models_own_under_each_naming(context, tiny, naming):
    report = ask(Activations, context, naming=naming, names=["z.1", "final"])
    name = {
        "transformerlens": "blocks.1.attn.hook_z", "modules": "model.layers.1.self_attn.o_proj.input", "fovea": "z.1",
    }[naming]  # fmt: skip
    found = arrays(artefact(report, "activations.npz").data())
    expected = trace(tiny.model, tiny.tensor(found["ids"].tolist()), capture=["z.1"])["z.1"].numpy()
    np.testing.assert_array_equal(found[name], expected)
    assert render(report, "application/x-npz") == artefact(report, "activations.npz").data()


def test_activations_without_a_name_or_too_large_are_refused(context):
    with pytest.raises(InvalidOption, match="no name in modules"):
        ask(Activations, context, names=["pattern.0"], naming="modules")
    with pytest.raises(InvalidOption, match="hook_nothing"):
        ask(Activations, context, names=["blocks.0.hook_nothing"])
    with pytest.raises(TooLarge, match="at most"):
        ask(Activations, context, names=["pattern"], text="x" * 1500)


async def test_arrays_come_back_as_bytes(tmp_path):
    async with probing(tmp_path) as client:
        body = {**Activations.card.example, "model": "tiny-induction"}
        body.pop("lm")
        (file,) = (await client.post("/v1/probe/activations", json=body)).json()["artefacts"]
        answer: httpx2.Response = await client.get(f"/v1/probe/artefacts/{file['sha256']}")
        assert answer.headers["content-type"] == "application/x-npz"
        assert "blocks.1.attn.hook_pattern" in arrays(answer.content)
        assert (await client.post("/v1/probe/activations?format=npz", json=body)).content == answer.content


def test_a_model_is_itself_and_others_are_compared_by_depth(context, smollm2):
    report = ask(HeadComparison, context)
    assert report.scalars["same_place_induction"].value == pytest.approx(1)
    first, second = (report.grid(f"{side} induction").values for side in ("first", "second"))
    assert (first, max(report.grid("depth").values[4])) == (second, pytest.approx(np.max(first)))
    share_language_model(context.cache)
    report = ask(HeadComparison, context, lm=smollm2.name)
    assert "same_place_induction" not in report.scalars
    assert {(row[0], row[1]): row for row in report.tables[0].rows}["induction", smollm2.name][2] > 3
