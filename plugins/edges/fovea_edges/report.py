"""Report of edge attribution: the faithfulness curve, the minimal circuit, its graph and its files for other tools.

Knows numbers and names; computes nothing about models.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fovea_circuits.circuit_tasks import Case, CaseBatch
from fovea_circuits.experiments.circuits.report import warn_of_task
from fovea_edges.cells import CircuitScores
from fovea_edges.circuit_files import PlacedCircuit, to_edge_arrays, to_neuronpedia
from fovea_edges.circuit_search import Edge, faithfulness
from fovea_edges.edge_attribution import Metric
from fovea_edges.edge_graph import EdgeGraph, EdgeSource
from services.interpretability.core import report as parts
from services.interpretability.core.report import (
    NPZ,
    Artefact,
    Bar,
    Bars,
    HeatMap,
    Report,
    Scalar,
    Table,
    canonical_json,
    pack_arrays,
)
from services.interpretability.core.studied_model import StudiedModel

MAX_DRAWN = 40
"""Edges of the drawn graph, the strongest."""

MAX_LISTED = 200
"""Edges of the circuit in the table; all are in the artefacts."""


@dataclass
class EdgeFindings:
    """Measurements of one run, complete or as far as it came.

    Attributes:
        cases, batches: The prompts, and as they were run.
        graph: The edges of the model.
        metric: Metric by which edges are scored.
        scores: Of all edges [R,S].
        parts: Per batch, scores by position.
        order: Edges, each beginning a circuit.
        whole, nothing: Metric with all edges and with none.
        curve: Metric with the first k edges.
        controls: Metric with k edges chosen by random scores.
        minimal: Size of the smallest faithful circuit, where one was found.
    """

    cases: list[Case]
    batches: list[CaseBatch]
    graph: EdgeGraph
    metric: Metric
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    parts: list[dict[str, Any]] = field(default_factory=list)
    order: list[Edge] = field(default_factory=list)
    whole: CircuitScores = field(default_factory=dict)
    nothing: CircuitScores = field(default_factory=dict)
    curve: dict[int, CircuitScores] = field(default_factory=dict)
    controls: dict[int, list[CircuitScores]] = field(default_factory=dict)
    minimal: int | None = None

    @property
    def gain(self) -> int:
        """Factor from score to gain: without a useful edge the logit difference falls, and the divergence grows."""
        return -1 if self.metric == "logit-difference" else 1

    def faith(self, found: CircuitScores) -> float:
        """Faithfulness of a circuit in its logit difference."""
        key = "logit_difference"
        return faithfulness(found[key], self.whole[key], self.nothing[key])

    def random_faith(self, size: int) -> list[float]:
        """Faithfulness of the random circuits of a size."""
        return [self.faith(found) for found in self.controls.get(size, [])]

    @property
    def circuit(self) -> list[Edge]:
        """Edges of the minimal circuit; without one, of the largest that was measured."""
        return self.order[: self.minimal or max(self.curve, default=0)]


def build_report(task: str, threshold: float, subject: StudiedModel, findings: EdgeFindings) -> Report:
    """Put the findings into a report; a circuit is faithful enough from `threshold` on."""
    if not findings.order:
        return Report(title=f"Edges of {task}", warnings=["Stopped before all edges were scored."])
    whole, nothing = (end["logit_difference"] for end in (findings.whole, findings.nothing))
    warnings = warn_of_task(findings.whole, nothing - whole, len(findings.cases))
    if findings.minimal is None:
        warnings.append(f"No circuit that was measured reaches {threshold:.0%}; the largest one is shown.")
    graph = draw_circuit(findings.graph, findings.circuit, findings.gain * findings.scores)
    placed = _place(findings, subject)
    links = canonical_json([[str(a), str(b), score] for a, b, score in _named(findings)])
    return Report(
        title=f"Edges of {task}",
        warnings=warnings,
        scalars=_scalars(findings),
        tables=[_curve_table(findings), _edge_table(findings)],
        grids=[_head_map(findings, subject), _position_map(findings, placed)],
        bars=_curve_bars(findings),
        graphs=[graph],
        artefacts=[
            Artefact.of("circuit.json", links),
            Artefact.of("circuit.neuronpedia.json", canonical_json(to_neuronpedia(placed))),
            Artefact.of(
                "edges.npz", pack_arrays(to_edge_arrays(findings.graph, findings.scores, findings.circuit)), NPZ
            ),
        ],
    )


def draw_circuit(graph: EdgeGraph, circuit: list[Edge], gains: np.ndarray) -> parts.Graph:
    """The strongest edges of a circuit between its nodes; a group's key or value reaches each of its heads there is."""
    strongest = sorted(circuit, key=lambda edge: -abs(gains[edge]))[:MAX_DRAWN]
    inside = {graph.sources[column] for _, column in strongest}
    edges = [
        parts.Edge(source=str(graph.sources[column]), target=target, value=float(gains[row, column]))
        for row, column in strongest
        for target in _nodes_of(graph, row, inside)
    ]
    shown = {edge.source for edge in edges} | {edge.target for edge in edges}
    totals = {source: float(np.nansum(gains[:, i])) for i, source in enumerate(graph.sources)}
    nodes = [_node(source, total) for source, total in totals.items() if str(source) in shown]
    caption = (
        f"The {len(strongest)} strongest of {len(circuit)} edges; blue carries the answer, orange works against it. "
        "A node's number is the sum over all of its edges."
    )
    return parts.Graph(name="circuit", nodes=nodes, edges=edges, caption=caption)


def _node(source: EdgeSource, total: float) -> parts.Node:
    head = source.head if source.kind == "head" else None
    return parts.Node(id=str(source), layer=source.layer, head=head, kind=source.kind, value=total)


def _nodes_of(graph: EdgeGraph, row: int, inside: set[EdgeSource]) -> list[str]:
    """Nodes that a target belongs to: those of the circuit, or where none is in it, none."""
    if row == len(graph.targets) - 1:
        return ["output"]
    return [str(source) for source in sorted(inside) if row in graph.readers(source)]


def _named(findings: EdgeFindings) -> list[tuple[Any, Any, float]]:
    graph = findings.graph
    return [(graph.sources[c], graph.targets[r], float(findings.scores[r, c])) for r, c in findings.circuit]


def _place(findings: EdgeFindings, subject: StudiedModel) -> PlacedCircuit:
    """The circuit on the first prompt: positions come from the batch that it is in."""
    case, cell = findings.batches[0].cases[0], findings.parts[0]
    return PlacedCircuit(
        graph=findings.graph,
        edges=findings.circuit,
        gains=findings.gain * findings.scores,
        placed=findings.gain * np.array(cell["placed"]),
        entry=findings.gain * np.array(cell["entry"]),
        model=subject.name,
        ids=case.clean,
        tokens=[token.text for token in subject.token_spans(case.clean)],
        answer=(case.correct, subject.tokenizer.token_text(case.correct)),
        probability=float(cell["probability"]),
    )


def _scalars(findings: EdgeFindings) -> dict[str, Scalar]:
    whole, nothing = findings.whole, findings.nothing
    scalars = {
        "prompts": Scalar(value=len(findings.cases)),
        "edges": Scalar(value=findings.graph.edges, note="Of the whole model."),
        "logit_diff": Scalar(value=whole["logit_difference"], unit="logits", note="All edges: the model itself."),
        "logit_diff_corrupt": Scalar(value=nothing["logit_difference"], unit="logits", note="No edge."),
        "above_zero": Scalar(value=whole["above"], note="Share of prompts."),
        "top1": Scalar(value=whole["top1"], note="The right answer is the likeliest token of all."),
        "minimal_edges": Scalar(value=findings.minimal, note="Edges of the smallest circuit that is faithful enough."),
    }
    if findings.minimal is not None:
        found = findings.curve[findings.minimal]
        heads = {c for _, c in findings.circuit if findings.graph.sources[c].kind == "head"}
        scalars |= {
            "minimal_faithfulness": Scalar(value=findings.faith(found), note="Of that circuit."),
            "minimal_top1": Scalar(value=found["top1"], note="Of that circuit."),
            "minimal_heads": Scalar(value=len(heads), note="Heads in it."),
        }
    return scalars


def _curve_table(findings: EdgeFindings) -> Table:
    rows: list[list[Any]] = []
    ends = {0: findings.nothing, **findings.curve, findings.graph.edges: findings.whole}
    for size, found in sorted(ends.items()):
        drawn = findings.random_faith(size)
        spread = [float(np.mean(drawn)), min(drawn), max(drawn)] if drawn else [None, None, None]
        share = size / findings.graph.edges
        rows.append([size, share, findings.faith(found), found["kl"], found["top1"], *spread])
    columns = "edges, share, faithfulness, kl, top-1, random mean, random lowest, random highest"
    caption = "Each circuit alone, all other edges corrupt; random circuits grow from the answer down, too."
    return Table.of("faithfulness", columns, rows, caption)


def _edge_table(findings: EdgeFindings) -> Table:
    named = sorted(_named(findings), key=lambda edge: -abs(edge[2]))[:MAX_LISTED]
    rows = [[str(source), str(target), score] for source, target, score in named]
    caption = "Edges of the circuit, strongest first; a score is the estimated change of the metric without the edge."
    return Table.of("edges", "from, to, score", rows, caption)


def _head_map(findings: EdgeFindings, subject: StudiedModel) -> HeatMap:
    totals = findings.gain * np.nansum(findings.scores, 0)
    values = totals[1:].reshape(subject.layers, -1)[:, : subject.heads]
    caption = "Contribution of a head to the answer through all of its edges, estimated; blue helps, orange hinders."
    return parts.head_map("heads", values, caption, scale="diverging")


def _position_map(findings: EdgeFindings, placed: PlacedCircuit, most: int = 20) -> HeatMap:
    totals = np.abs(placed.placed).sum(1)
    chosen = [int(i) for i in np.argsort(-totals, kind="stable")[:most]]
    return parts.heat_map(
        "positions",
        placed.placed[chosen],
        ("node", [findings.graph.sources[i] for i in chosen]),
        ("token", placed.tokens),
        "Where the strongest nodes add to the answer, on prompts as long as the one that is shown.",
        scale="diverging",
    )


def _curve_bars(findings: EdgeFindings) -> list[Bars]:
    """The curve and its controls on one scale."""
    real = [Bar(label=str(size), value=findings.faith(found)) for size, found in sorted(findings.curve.items())]
    drawn = {size: findings.random_faith(size) for size in sorted(findings.controls)}
    chance = [Bar(label=f"r {s}", value=float(np.mean(v)), low=min(v), high=max(v)) for s, v in drawn.items()]
    caption = (
        "Faithfulness of the circuit of so many edges alone; 1 is the whole model. r: random circuits as large, their "
        "mean with the lowest and the highest."
    )
    return [Bars(name="faithfulness", bars=[*real, *chance], unit="of the whole", caption=caption)] if real else []
