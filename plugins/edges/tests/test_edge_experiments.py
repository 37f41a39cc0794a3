"""Experiments on edges: the curve, the minimal circuit, its files, and pruning."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from fovea.errors import InvalidOption
from fovea_edges.experiments import edge_attribution
from fovea_edges.experiments.acdc import Acdc
from fovea_edges.experiments.edge_attribution import EdgeAttribution
from services.interpretability.core.report import code_digest
from services.interpretability.tests.conftest import arrays, artefact, ask
from shared.registry import LoadContext

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


def test_a_report_depends_on_the_code_of_the_plug_in_too(edges):
    assert edges.manifest.code == code_digest("fovea_edges.report") != code_digest()


def test_a_search_that_runs_out_of_tries_keeps_the_smallest_circuit_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_attribution, "MAX_SEARCH", 1)
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
