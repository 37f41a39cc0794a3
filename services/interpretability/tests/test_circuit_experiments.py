"""Circuits as experiments and as files: a faithful minimal circuit, what pruning leaves, files for other tools."""

import io
import json
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.core.report import Artefact, Report
from services.interpretability.experiments.acdc import Acdc
from services.interpretability.experiments.activations import Activations
from services.interpretability.experiments.edge_attribution import EdgeAttribution
from services.interpretability.experiments.head_comparison import HeadComparison
from services.interpretability.rendering.render import render
from services.interpretability.tests.conftest import probing
from shared.lm.taps import trace
from shared.registry import CallContext
from tests.harness.language_model import share_language_model

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
    from shared.registry import LoadContext

    folder = tmp_path_factory.mktemp("edges")
    return ask(EdgeAttribution, LoadContext(cache=folder, weights=folder, threads=1))


def test_curve_goes_from_nothing_to_the_whole_model_and_beats_chance(edges):
    rows = edges.tables[0].rows
    assert (rows[0][:3], rows[-1][2]) == ([0, 0.0, 0.0], pytest.approx(1, abs=1e-4))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    between = [row for row in rows if row[5] is not None]
    assert np.mean([row[2] - row[5] for row in between]) > 0.3


def test_minimal_circuit_is_faithful_enough_and_small(edges):
    size = edges.scalars["minimal_edges"].value
    assert edges.scalars["minimal_faithfulness"].value >= 0.85
    assert size < edges.scalars["edges"].value / 2
    assert len(json.loads(artefact(edges, "circuit.json").content)) == size
    assert {edge.target for edge in edges.graphs[0].edges} <= {n.id for n in edges.graphs[0].nodes} | {"output"}


def test_a_search_that_runs_out_of_tries_keeps_the_smallest_circuit_it_found(tmp_path, monkeypatch):
    from services.interpretability.experiments.edge_attribution import run
    from shared.registry import LoadContext

    monkeypatch.setattr(run, "MAX_SEARCH", 1)
    context = LoadContext(cache=tmp_path, weights=tmp_path, threads=1)
    report = ask(EdgeAttribution, context, sizes=[1, 80], controls=1)
    assert report.scalars["minimal_edges"].value in {40, 80}
    assert report.scalars["minimal_faithfulness"].value >= 0.85


def test_graph_is_what_neuronpedia_reads(edges):
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


def test_edges_have_hook_points_in_their_arrays(edges):
    found = arrays(artefact(edges, "edges.npz").data())
    assert len(found["score"]) == edges.scalars["edges"].value
    assert found["in_circuit"].sum() == edges.scalars["minimal_edges"].value
    assert {"hook_embed", "blocks.0.attn.hook_result", "blocks.1.hook_mlp_out"} <= set(found["source_hook"])
    assert {"blocks.2.hook_q_input", "blocks.0.hook_mlp_in", "blocks.2.hook_resid_post"} <= set(found["target_hook"])


def test_pruning_keeps_what_attribution_ranks_first(context):
    report = ask(Acdc, context)
    assert 0 < report.scalars["kept_edges"].value < report.scalars["edges"].value / 2
    assert report.scalars["attribution_auc"].value > 0.8
    assert report.scalars["measured"].value <= report.scalars["edges"].value


def test_sizes_that_the_model_has_not_are_refused(context):
    with pytest.raises(InvalidOption, match="edges") as caught:
        ask(EdgeAttribution, context, sizes=[10**6])
    assert caught.value.field == "sizes"


@pytest.mark.parametrize("naming", ["transformerlens", "modules", "fovea"])
def test_activations_are_the_models_own_under_each_naming(context, tiny, naming):
    report = ask(Activations, context, naming=naming, names=["z.1", "final"])
    name = {
        "transformerlens": "blocks.1.attn.hook_z",
        "modules": "model.layers.1.self_attn.o_proj.input",
        "fovea": "z.1",
    }[naming]
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
        assert await client.post("/v1/probe/activations?format=npz", json=body).content == answer.content


def test_model_compared_with_itself_is_itself(context):
    report = ask(HeadComparison, context)
    assert report.scalars["same_place_induction"].value == pytest.approx(1)
    first, second = (report.grid(f"{side} induction").values for side in ("first", "second"))
    assert (first, max(report.grid("depth").values[4])) == (second, pytest.approx(np.max(first)))


def test_models_of_other_sizes_are_compared_by_depth(context, smollm2):
    share_language_model(context.cache)
    report = ask(HeadComparison, context, lm=smollm2.name)
    assert "same_place_induction" not in report.scalars
    assert {(row[0], row[1]): row for row in report.tables[0].rows}["induction", smollm2.name][2] > 3
