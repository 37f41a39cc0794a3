"""Circuits as files of other tools: Neuronpedia's graph JSON, and arrays whose edges have TransformerLens' names.

The JSON follows the schema that Neuronpedia publishes for attribution graphs (version 1). Knows formats and names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea_edges.edge_graph import EdgeGraph, EdgeSource, EdgeTarget

MIN_ENTRY = 1e-9
"""Part of an edge of the embedding below which a position has no node."""


@dataclass(frozen=True)
class PlacedCircuit:
    """A circuit on one prompt.

    Attributes:
        graph: The edges of the model.
        edges: Edges of the circuit, (row, column).
        gains: Of all edges [R,S]: what each adds to the answer.
        placed: Part of each source by position [S,T].
        entry: Part of each edge of the embedding by position [R,T].
        model: The model's name.
        ids, tokens: The prompt [T].
        answer: Id and text of the right answer.
        probability: Its probability by the model.
    """

    graph: EdgeGraph
    edges: Sequence[tuple[int, int]]
    gains: np.ndarray
    placed: np.ndarray
    entry: np.ndarray
    model: str
    ids: Sequence[int]
    tokens: Sequence[str]
    answer: tuple[int, str]
    probability: float


def to_neuronpedia(circuit: PlacedCircuit) -> dict[str, Any]:
    """Return a circuit as Neuronpedia's graph JSON.

    A head or an MLP stands at the position where it matters most; the embedding is one node per token that matters.
    A link's weight is what the edge adds to the answer; a key or value that heads share reaches each of them in the
    circuit, with the whole weight.
    """
    nodes: dict[str, dict[str, Any]] = {}
    links: list[dict[str, Any]] = []
    inside = {circuit.graph.sources[column] for _, column in circuit.edges}
    answer = _answer_node(circuit)
    for row, column in circuit.edges:
        source = circuit.graph.sources[column]
        readers = [_source_node(circuit, s) for s in sorted(inside) if row in circuit.graph.readers(s)]
        targets = [answer] if row == len(circuit.graph.targets) - 1 else readers
        for start, weight in _starts(circuit, source, row, column):
            for target in targets:
                nodes |= {start["node_id"]: start, target["node_id"]: target}
                links.append({"source": start["node_id"], "target": target["node_id"], "weight": weight})
    nodes.setdefault(answer["node_id"], answer)
    facts = {"slug": "fovea-circuit", "scan": circuit.model, "transcoder_list": [], "schema_version": 1}
    facts |= {"prompt_tokens": list(circuit.tokens), "prompt": "".join(circuit.tokens)}
    return {
        "metadata": facts | {"info": {"generator": {"name": "Fovea edge-attribution"}}},
        "qParams": {"pinnedIds": list(nodes), "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": links,
    }


def to_edge_arrays(graph: EdgeGraph, scores: np.ndarray, circuit: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Return all E edges as arrays: hook points of TransformerLens and heads of both ends, scores, membership.

    `source_hook`, `target_hook` (text), `source_head`, `target_head` (−1 where a hook has none; groups for k and v),
    `score` (float64) and `in_circuit` (bool), each [E].
    """
    edges, inside = list(graph.edges_of(graph.exists)), set(circuit)
    sources = [_source_hook(graph, graph.sources[column]) for _, column in edges]
    targets = [_target_hook(graph, graph.targets[row]) for row, _ in edges]
    return {
        "source_hook": np.array([name for name, _ in sources]),
        "source_head": np.array([head for _, head in sources]),
        "target_hook": np.array([name for name, _ in targets]),
        "target_head": np.array([head for _, head in targets]),
        "score": np.array([scores[edge] for edge in edges]),
        "in_circuit": np.array([edge in inside for edge in edges]),
    }


def _source_hook(graph: EdgeGraph, source: EdgeSource) -> tuple[str, int]:
    if source.kind == "embed":
        return ("blocks.0.hook_resid_pre" if graph.config.path == "gpt2" else "hook_embed"), -1
    if source.kind == "mlp":
        return f"blocks.{source.layer}.hook_mlp_out", -1
    return f"blocks.{source.layer}.attn.hook_result", source.head


def _target_hook(graph: EdgeGraph, target: EdgeTarget) -> tuple[str, int]:
    if target.kind == "answer":
        return f"blocks.{graph.config.layers - 1}.hook_resid_post", -1
    if target.kind == "mlp":
        return f"blocks.{target.layer}.hook_mlp_in", -1
    return f"blocks.{target.layer}.hook_{target.kind}_input", target.head


def _starts(circuit: PlacedCircuit, source: EdgeSource, row: int, column: int) -> list[tuple[dict[str, Any], float]]:
    """Nodes that an edge starts at, with its weight: one, or for the embedding one per token that matters."""
    if source.kind != "embed":
        return [(_source_node(circuit, source), float(circuit.gains[row, column]))]
    share = circuit.entry[row]
    scale = circuit.gains[row, column] / share.sum() if abs(share.sum()) > MIN_ENTRY else 0.0
    places = np.flatnonzero(np.abs(share) > MIN_ENTRY)
    return [(_token_node(circuit, position), float(scale * share[position])) for position in places]


def _node(identity: str, layer: str, feature: int, position: int, kind: str, text: str, T: int) -> dict[str, Any]:
    place = {"ctx_idx": position, "reverse_ctx_idx": T - 1 - position}
    rest = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "influence": None, "activation": None}
    name = {"node_id": identity, "jsNodeId": f"{identity.rpartition('_')[0]}-{position}", "clerp": text}
    return {**name, **place, **rest, "feature": feature, "layer": layer, "feature_type": kind}


def _source_node(circuit: PlacedCircuit, source: EdgeSource) -> dict[str, Any]:
    column = circuit.graph.sources.index(source)
    position = int(np.abs(circuit.placed[column]).argmax())
    feature = source.head if source.kind == "head" else circuit.graph.config.heads
    kind = "attention head" if source.kind == "head" else "mlp"
    name = f"head {source}" if source.kind == "head" else str(source)
    identity = f"{source.layer}_{feature}_{position}"
    node = _node(identity, str(source.layer), feature, position, kind, name, len(circuit.tokens))
    return node | {"activation": float(circuit.placed[column].sum())}


def _token_node(circuit: PlacedCircuit, position: int) -> dict[str, Any]:
    identity, text = f"E_{circuit.ids[position]}_{position}", f'Emb: "{circuit.tokens[position]}"'
    return _node(identity, "E", int(position), int(position), "embedding", text, len(circuit.tokens))


def _answer_node(circuit: PlacedCircuit) -> dict[str, Any]:
    (token, text), last = circuit.answer, len(circuit.tokens) - 1
    layer = str(circuit.graph.config.layers)
    label = f'Output "{text}" (p={circuit.probability:.3f})'
    node = _node(f"{layer}_{token}_{last}", layer, token, last, "logit", label, len(circuit.tokens))
    return node | {"is_target_logit": True, "token_prob": circuit.probability}
