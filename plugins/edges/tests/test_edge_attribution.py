"""Edge attribution: exact sums and cuts, known circuits, agreement with patching; its experiments and pruning."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from fovea.errors import InvalidOption
from fovea_circuits.patching import attribution_patch, logit_difference
from fovea_edges import circuit_search
from fovea_edges.edge_attribution import attribute_edges, patch_edges, score_circuit
from fovea_edges.edge_graph import EdgeGraph, EdgeSource, EdgeTarget
from fovea_edges.edge_runs import run_circuit, run_edges
from fovea_edges.experiments import edge_attribution
from fovea_edges.experiments.acdc import Acdc
from fovea_edges.experiments.edge_attribution import EdgeAttribution
from services.interpretability.core.report import code_digest
from services.interpretability.tests.conftest import arrays, artefact, ask
from shared.lm.builders import gpt2
from shared.lm.decoder import Decoder
from shared.lm.taps import Replace, trace
from shared.registry import LoadContext

V, P = 8, 8
WIDTH, HEAD = 4 * V, 16
TOKEN, BEFORE, PLACE, JUNK = (slice(i * V, (i + 1) * V) for i in range(4))
A, B, C, D, E, START = range(6)
SHARP = 40.0
"""Scale of queries: attention is nearly hard."""


def induction_model(sharp: float = SHARP) -> Decoder:
    """A GPT-2 of two layers without MLPs whose circuits are known: a previous-token head and an induction head.

    The residual stream holds the token, the token before, the position, and junk, one hot each. Head 0-0 copies the
    token before; head 1-0 looks for its own token there, and copies what it finds; each has a distractor.
    """
    model = gpt2(vocab=V, width=WIDTH, layers=2, heads=2, hidden=8, positions=P)
    for parameter in model.parameters():
        parameter.data.zero_()
    eye = torch.eye(V)
    model.transformer.wte.weight.data[:, TOKEN] = eye
    model.transformer.wpe.weight.data[:, PLACE] = eye
    for name, parameter in model.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            parameter.data.fill_(1.0)
    back = torch.roll(eye, -1, 1)  # position t asks for t − 1
    _set(model, 0, 0, PLACE, back * sharp, PLACE, eye, TOKEN, BEFORE, 1.0)
    _set(model, 0, 1, PLACE, eye * 0.0, PLACE, eye, TOKEN, JUNK, 0.1)
    _set(model, 1, 0, TOKEN, eye * sharp, BEFORE, eye, TOKEN, TOKEN, 2.0)
    _set(model, 1, 1, PLACE, eye * 0.0, PLACE, eye, JUNK, JUNK, 0.1)
    return model.double().requires_grad_(requires_grad=False).eval()


def _set(model, layer, head, q, q_map, k, k_map, v, out, gain):
    """Give a head what it asks for, what it is found by, what it copies, and where to."""
    attn = model.transformer.h[layer].attn
    fused = attn.c_attn.weight.data.view(WIDTH, 3, 2, HEAD)
    fused[q, 0, head, :V], fused[k, 1, head, :V], fused[v, 2, head, :V] = q_map, k_map, torch.eye(V)
    attn.c_proj.weight.data.view(2, HEAD, WIDTH)[head, :V, out] = gain * torch.eye(V)


def prompts(which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Clean prompt, counterfactual and answers: … A B C D A → B, not C, with the `key`, `query` or `value` changed."""
    clean = [START, A, B, C, D, A]
    corrupt = {"key": [E, B, C, D, A], "query": [A, B, C, D, E], "value": [A, C, B, D, A]}[which]
    corrupt = [START, *corrupt]
    return torch.tensor([clean]), torch.tensor([corrupt]), torch.tensor([[B, C]])


KNOWN = {
    "key": {"embed → 0-0 v", "0-0 → 1-0 k", "1-0 → answer"},
    "query": {"embed → 1-0 q", "1-0 → answer"},
    "value": {"embed → 1-0 v", "1-0 → answer"},
}


def runs(model, clean, corrupt):
    return run_edges(model, clean), run_edges(model, corrupt)


def everything(model):
    graph = EdgeGraph(model.config)
    return graph, graph.exists, list(graph.edges_of(graph.exists))


def test_graph_counts_its_edges_of_which_every_beginning_of_the_order_reaches_the_answer(golden):
    graph = EdgeGraph(golden.model.config)
    L, H, G = 3, 4, golden.model.config.kv_heads
    below = [1 + l * (H + 1) for l in range(L)]
    assert graph.edges == sum((H + 2 * G) * n + n + H for n in below) + 1 + L * (H + 1)
    assert len(graph.sources) == 1 + L * (H + 1)
    parts = (("q", 3), ("k", 3 // (H // G)), ("v", 3 // (H // G)))
    readers = [graph.targets.index(EdgeTarget(1, *part)) for part in parts]
    assert graph.readers(EdgeSource(1, "head", 3)) == readers
    ordered = circuit_search.order_edges(graph, circuit_search.random_scores(graph, 3, 1))
    assert len(set(ordered)) == len(ordered) == graph.edges
    reached = {len(graph.targets) - 1}
    for row, column in ordered:
        assert row in reached
        reached |= set(graph.readers(graph.sources[column]))
    assert np.isnan(circuit_search.faithfulness(1.0, 2.0, 2.0))
    assert np.isnan(circuit_search.rank_agreement(np.ones((1, 2)), np.ones((1, 2), bool)))


@pytest.mark.parametrize("kind", ["golden", "family"])
def test_all_edges_are_the_model_and_no_edge_is_the_counterfactual(kind, golden, model, family_prompts):
    net, ids, other = golden.given[:3] if kind == "golden" else (model, *family_prompts[:2])
    clean, corrupt = runs(net, ids, other)
    _, exists, _ = everything(net)
    whole, near = net(ids)[:, -1], {"atol": 1e-5, "rtol": 1e-4} if kind == "golden" else {}
    torch.testing.assert_close(clean.last, whole, **near)
    torch.testing.assert_close(run_circuit(net, clean, corrupt, torch.from_numpy(exists)), whole, **near)
    nothing = run_circuit(net, clean, corrupt, torch.zeros(exists.shape, dtype=torch.bool))
    torch.testing.assert_close(nothing, net(other)[:, -1], **near)


def test_cut_edge_is_a_forward_with_that_input_alone_changed(golden):
    graph, net = EdgeGraph(golden.model.config), golden.model
    clean, corrupt = runs(net, golden.clean, golden.corrupt)
    base = logit_difference(clean.last, golden.answers)

    def whole_forward(edit):
        return logit_difference(trace(net, golden.clean, edits=[edit]).logits[:, -1], golden.answers) - base

    head = graph.sources.index(EdgeSource(0, "head", 1))
    moved = corrupt.written[head] - clean.written[head]
    to_answer = whole_forward(Replace("final", trace(net, golden.clean, capture=["final"])["final"] + moved))
    q, k, _ = net.blocks[1].project(trace(net, golden.clean, capture=["resid_pre.1"])["resid_pre.1"] + moved)
    to_query, to_key = (whole_forward(Replace(f"{s}.1", x, heads=1)) for s, x in (("q", q), ("k", k)))
    targets = (EdgeTarget(3, "answer"), EdgeTarget(1, "q", 1), EdgeTarget(1, "k", 1))
    edges = [(graph.targets.index(target), head) for target in targets]
    found = patch_edges(net, clean, corrupt, golden.answers, edges)
    assert found == pytest.approx([to_answer, to_query, to_key], abs=1e-5)


def test_edges_of_a_head_sum_to_its_attribution_patching(golden):
    graph = EdgeGraph(golden.model.config)
    clean, corrupt = runs(golden.model, golden.clean, golden.corrupt)
    found = attribute_edges(golden.model, clean, corrupt, golden.answers, steps=1)
    scores, placed = found.edges, found.placed
    np.testing.assert_allclose(found.entry.sum(1), scores[:, 0], atol=1e-6)
    expected = attribution_patch(*golden.given)
    for column, source in enumerate(graph.sources):
        total = np.nansum(scores[:, column])
        assert placed[column].sum() == pytest.approx(total, abs=1e-5)
        if source.kind == "head":
            assert total == pytest.approx(expected[source.layer, source.head], abs=1e-5)


@pytest.mark.parametrize("metric", ["logit-difference", "kl"])
def test_edges_of_the_embedding_integrate_to_the_whole_difference(golden, metric):
    clean, corrupt = runs(golden.model, golden.clean, golden.corrupt)
    whole, nothing = (np.full(EdgeGraph(golden.model.config).exists.shape, v) for v in (True, False))
    key = metric.replace("-", "_")
    ends = [score_circuit(golden.model, clean, corrupt, golden.answers, mask)[key] for mask in (nothing, whole)]
    scores = attribute_edges(golden.model, clean, corrupt, golden.answers, steps=100, metric=metric).edges
    assert np.nansum(scores[:, 0]) == pytest.approx(ends[0] - ends[1], rel=0.03, abs=1e-3)


@pytest.mark.parametrize("which", KNOWN)
def test_known_circuits_are_found_and_left_by_pruning(which):
    net = induction_model()
    graph, exists, edges = everything(net)
    ids, other, answers = prompts(which)
    clean, corrupt = runs(net, ids, other)
    ends = [score_circuit(net, clean, corrupt, answers, mask)["logit_difference"] for mask in (exists, exists & False)]
    span = ends[0] - ends[1]
    assert span > 1
    exact = patch_edges(net, clean, corrupt, answers, edges)
    assert {graph.name(e) for e, change in zip(edges, exact, strict=True) if abs(change) > 0.1 * span} == KNOWN[which]
    scores = attribute_edges(net, clean, corrupt, answers, steps=50).edges
    size = len(KNOWN[which])
    best = circuit_search.order_edges(graph, scores)[:size]
    assert {graph.name(edge) for edge in best} == KNOWN[which]
    alone = score_circuit(net, clean, corrupt, answers, graph.mask_of(best))["logit_difference"]
    assert circuit_search.faithfulness(alone, *ends) == pytest.approx(1, abs=0.05)
    without = score_circuit(net, clean, corrupt, answers, exists & ~graph.mask_of(best))["logit_difference"]
    assert circuit_search.faithfulness(without, *ends) < 0.1
    chance = circuit_search.order_edges(graph, circuit_search.random_scores(graph, 0, 0))[:size]
    drawn = score_circuit(net, clean, corrupt, answers, graph.mask_of(chance))["logit_difference"]
    assert circuit_search.faithfulness(drawn, *ends) < 0.5

    def measure(mask):
        return score_circuit(net, clean, corrupt, answers, mask)["kl"]

    mask, value = exists.copy(), 0.0
    for row in reversed(range(len(graph.targets))):
        kept, value, _ = circuit_search.prune_target(graph, mask, row, value, measure, 0.01)
        mask[row] = False
        mask[row, kept] = True
    # The divergence counts all tokens, so the last one's own, too, where it differs.
    known = KNOWN[which] | ({"embed → answer"} if which == "query" else set())
    assert {graph.name(edge) for edge in graph.edges_of(mask)} == known
    scores = attribute_edges(net, clean, corrupt, answers, steps=50, metric="kl").edges
    assert circuit_search.rank_agreement(scores, mask) == 1


NODE = {
    "node_id": str, "feature": int | None, "layer": str | int, "ctx_idx": int, "feature_type": str, "jsNodeId": str,
    "clerp": str, "influence": float | None, "activation": float | None,
}  # fmt: skip
LINK = {"source": str, "target": str, "weight": float}
ABOUT = {"slug": str, "scan": str, "prompt": str, "prompt_tokens": list}
"""Fields that Neuronpedia's schema of attribution graphs (version 1) requires."""


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    return ask(EdgeAttribution, LoadContext(cache=folder, weights=folder, threads=1))


def test_a_curve_goes_to_the_whole_model_and_its_minimal_circuit_is_faithful_small_and_of_this_code(edges):
    rows = edges.tables[0].rows
    assert (rows[0][:3], rows[-1][2]) == ([0, 0.0, 0.0], pytest.approx(1, abs=1e-4))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert np.mean([row[2] - row[5] for row in rows if row[5] is not None]) > 0.3
    size = edges.scalars["minimal_edges"].value
    assert edges.scalars["minimal_faithfulness"].value >= 0.85
    assert size < edges.scalars["edges"].value / 2
    assert len(json.loads(artefact(edges, "circuit.json").content)) == size
    assert {edge.target for edge in edges.graphs[0].edges} <= {n.id for n in edges.graphs[0].nodes} | {"output"}
    assert edges.manifest.code == code_digest("fovea_edges.report") != code_digest()


def test_graph_is_what_neuronpedia_reads_and_edges_have_hook_points(edges):
    graph = json.loads(artefact(edges, "circuit.neuronpedia.json").content)
    assert "qParams" in graph
    for fields, parts in ((NODE, graph["nodes"]), (LINK, graph["links"]), (ABOUT, [graph["metadata"]])):
        assert all(isinstance(part[name], kind) for part in parts for name, kind in fields.items())
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


def test_pruning_keeps_what_attribution_ranks_first_and_a_search_without_tries_its_smallest(context, monkeypatch):
    report = ask(Acdc, context)
    assert 0 < report.scalars["kept_edges"].value < report.scalars["edges"].value / 2
    assert report.scalars["attribution_auc"].value > 0.8
    assert report.scalars["measured"].value <= report.scalars["edges"].value
    for field, refused in (("sizes", {"sizes": [10**6]}), ("steps", {"metric": "kl", "steps": 1})):
        with pytest.raises(InvalidOption, check=lambda e, field=field: e.field == field):
            ask(EdgeAttribution, context, **refused)
    monkeypatch.setattr(edge_attribution, "MAX_SEARCH", 1)
    report = ask(EdgeAttribution, context, sizes=[1, 80], controls=1)
    assert report.scalars["minimal_edges"].value in {40, 80}
    assert report.scalars["minimal_faithfulness"].value >= 0.85
