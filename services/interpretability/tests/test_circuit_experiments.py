"""Circuit experiments, their tasks, and networks that are pruned."""

import io
import json
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption, Malformed, TooLarge
from services.interpretability.causal.activation_cache import run_with_cache
from services.interpretability.causal.circuit_tasks import (
    group_by_length,
    make_coloured_objects,
    make_indirect_objects,
    parse_pairs,
)
from services.interpretability.causal.pruning import PruningPattern, count_stored_bytes, prune
from services.interpretability.core.report import Artefact, Report
from services.interpretability.experiments.acdc import Acdc
from services.interpretability.experiments.activations import Activations
from services.interpretability.experiments.circuits import Circuits, CircuitsSpec, logit_difference
from services.interpretability.experiments.edge_attribution import EdgeAttribution, run
from services.interpretability.experiments.head_comparison import HeadComparison
from services.interpretability.experiments.sparsity import SparsityStudy
from services.interpretability.rendering.render import render
from services.interpretability.tests.conftest import probing, read
from shared.lm.taps import trace
from shared.registry import CallContext, LoadContext
from shared.sparsity import SparsityClaim, lint, sparsity_of, verify_nm
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


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": ["integer", "null"]}, {"type": ["number", "null"]}


def record(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


SCHEMA = record(
    "metadata qParams nodes links",
    metadata=record("slug scan prompt_tokens prompt", slug=TEXT, scan=TEXT, prompt=TEXT, prompt_tokens=listed(TEXT)),
    nodes=listed(
        record(
            "node_id feature layer ctx_idx feature_type jsNodeId clerp",
            node_id=TEXT, feature=WHOLE, layer={"type": ["string", "integer"]}, ctx_idx={"type": "integer"},
            feature_type=TEXT, jsNodeId=TEXT, clerp=TEXT, influence=NUMBER, activation=NUMBER,
        )
    ),
    links=listed(record("source target weight", source=TEXT, target=TEXT, weight={"type": "number"})),
)  # fmt: skip
"""Requirements of Neuronpedia's schema of attribution graphs (version 1)."""


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


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    return ask(EdgeAttribution, LoadContext(cache=folder, weights=folder, threads=1))


def test_a_curve_goes_to_the_whole_model_and_its_minimal_circuit_is_faithful_and_small(edges):
    rows = edges.tables[0].rows
    assert (rows[0][:3], rows[-1][2]) == ([0, 0.0, 0.0], pytest.approx(1, abs=1e-4))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    between = [row for row in rows if row[5] is not None]
    assert np.mean([row[2] - row[5] for row in between]) > 0.3
    size = edges.scalars["minimal_edges"].value
    assert edges.scalars["minimal_faithfulness"].value >= 0.85
    assert size < edges.scalars["edges"].value / 2
    assert len(json.loads(artefact(edges, "circuit.json").content)) == size
    assert {edge.target for edge in edges.graphs[0].edges} <= {n.id for n in edges.graphs[0].nodes} | {"output"}


def test_a_search_that_runs_out_of_tries_keeps_the_smallest_circuit_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MAX_SEARCH", 1)
    context = LoadContext(cache=tmp_path, weights=tmp_path, threads=1)
    report = ask(EdgeAttribution, context, sizes=[1, 80], controls=1)
    assert report.scalars["minimal_edges"].value in {40, 80}
    assert report.scalars["minimal_faithfulness"].value >= 0.85


def test_graph_is_what_neuronpedia_reads_and_edges_have_hook_points(edges):
    graph = json.loads(artefact(edges, "circuit.neuronpedia.json").content)
    jsonschema.validate(graph, SCHEMA)
    names = [node["node_id"] for node in graph["nodes"]]
    assert len(set(names)) == len(names)
    assert {end for link in graph["links"] for end in (link["source"], link["target"])} <= set(names)
    assert sum(node["is_target_logit"] for node in graph["nodes"]) == 1
    tokens = graph["metadata"]["prompt_tokens"]
    assert "".join(tokens) == graph["metadata"]["prompt"] == "kqzwxm kqzwx"
    assert all(0 <= node["ctx_idx"] < len(tokens) for node in graph["nodes"])
    assert all(link["weight"] > 0 for link in graph["links"]), "what carries the answer is positive"
    entries = [node["ctx_idx"] for node in graph["nodes"] if node["feature_type"] == "embedding"]
    assert entries == [5], "the prompts differ at one token"
    found = arrays(artefact(edges, "edges.npz").data())
    assert len(found["score"]) == edges.scalars["edges"].value
    assert found["in_circuit"].sum() == edges.scalars["minimal_edges"].value
    assert {"hook_embed", "blocks.0.attn.hook_result", "blocks.1.hook_mlp_out"} <= set(found["source_hook"])
    assert {"blocks.2.hook_q_input", "blocks.0.hook_mlp_in", "blocks.2.hook_resid_post"} <= set(found["target_hook"])


def test_pruning_keeps_what_attribution_ranks_first_and_other_sizes_are_refused(context):
    report = ask(Acdc, context)
    assert 0 < report.scalars["kept_edges"].value < report.scalars["edges"].value / 2
    assert report.scalars["attribution_auc"].value > 0.8
    assert report.scalars["measured"].value <= report.scalars["edges"].value
    with pytest.raises(InvalidOption, match="edges") as caught:
        ask(EdgeAttribution, context, sizes=[10**6])
    assert caught.value.field == "sizes"


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


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 0.95), st.integers(0, 99))
def test_the_smallest_weights_go_and_their_share_is_the_one_that_was_asked_for(rows, columns, share, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left = prune({"w": weight, "b": weight[0]}, PruningPattern(share))
    assert int((left["w"] == 0).sum()) == round(share * weight.numel())
    kept, gone = weight[left["w"] != 0].abs(), weight[left["w"] == 0].abs()
    assert not len(kept) or not len(gone) or gone.max() <= kept.min()
    assert torch.equal(left["b"], weight[0])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4)])
def test_of_every_m_inputs_n_are_kept_and_what_does_not_divide_stays(n, m):
    torch.manual_seed(0)
    state = {"conv": torch.randn(6, 4, 3, 3), "odd": torch.randn(3, 7)}
    left = prune(state, PruningPattern.parse(f"{n}:{m}"))
    assert verify_nm(left["conv"].flatten(1), n, m)
    assert sparsity_of(left["conv"]) == 1 - n / m
    assert torch.equal(left["odd"], state["odd"])
    assert count_stored_bytes({"conv": left["conv"]}) == (6 * 36 * 2 * n // m, 27)


@pytest.mark.parametrize("bad", ["", "1", "0", "-0.5", "4:2", "2:2", "0:4", "a:b", "half", "2:4:8"])
def test_what_is_no_pattern_is_refused(bad):
    with pytest.raises(InvalidOption, match="not a pattern"):
        PruningPattern.parse(bad)


def test_claims_are_complete_but_for_quality_and_masked_dense_is_called_so(context):
    study = SparsityStudy.load(context)
    spec = study.In.model_validate({**study.card.example, "patterns": ["0.5", "2:4"], "runs": 30})
    (report,) = study.predict([spec], CallContext())
    rows = {row[0]: row for row in report.tables[1].rows}
    claims = {name: SparsityClaim.model_validate_json(row[-1]) for name, row in rows.items()}
    assert ({f.rule for f in lint(claims["0.5"])}, {f.rule for f in lint(claims["2:4"])}) == ({"S7"}, {"S6", "S7"})
    assert claims["0.5"].sparsity_global == pytest.approx(0.5, abs=0.001)
    assert claims["2:4"].nm_verified
    assert not any(claim.measured.kernel_sparse for claim in claims.values())
    before = {name: weight.clone() for name, weight in study.load_model("pranet").model.named_parameters()}
    assert all(sparsity_of(weight) < 0.4 for weight in before.values() if weight.dim() >= 2)


def test_other_shipped_networks_are_pruned_too(context):
    study = SparsityStudy.load(context)
    (report,) = study.predict([study.In.model_validate({**study.card.example, "lm": "fasternet"})], CallContext())
    assert [row[0] for row in report.tables[0].rows] == ["0.9", "2:4"]
    assert report.tables[0].rows[0][1] == pytest.approx(0.9, abs=0.01)
