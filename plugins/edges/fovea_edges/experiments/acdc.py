"""ACDC experiment: the circuit that is left when every edge whose loss changes nothing is cut, one after the other.

"Towards Automated Circuit Discovery for Mechanistic Interpretability" (2023). A run per edge, so for small models: the
slow reference for edge-attribution, whose scores it ranks.
"""

from typing import Any

import numpy as np
from pydantic import Field

from fovea.errors import Cancelled, DeadlineExceeded, InvalidOption
from fovea_circuits.experiments.circuits.report import warn_of_task
from fovea_circuits.experiments.circuits.run import make_cases
from fovea_circuits.experiments.circuits.spec import PAIRS, TaskSpec
from fovea_edges.cells import EdgeCells, group_cases
from fovea_edges.circuit_search import prune_target, rank_agreement
from fovea_edges.edge_graph import EdgeGraph
from fovea_edges.report import draw_circuit
from services.interpretability.core.experiment import Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import (
    Artefact,
    Bar,
    Bars,
    Report,
    Scalar,
    Table,
    canonical_json,
    json_digest,
)
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Paper

MAX_EDGES = 5000
"""Largest model, in edges: each costs a run of the whole model."""


class AcdcSpec(TaskSpec):
    """Task, and what an edge must be worth."""

    threshold: float = Field(
        0.01, gt=0, le=100, description="An edge is cut when the divergence grows by less than this, in nats."
    )
    steps: int = Field(5, ge=2, le=100, description="Points of the integral of the scores that are compared.")


class Acdc(Experiment[AcdcSpec]):
    """Cuts edges from the answer down, and compares what is left with the ranks of edge attribution."""

    In = AcdcSpec
    route = "circuits/acdc"
    card = probe_card(
        "acdc",
        "Prunes a small model to the edges that a task needs, one run per edge (ACDC).",
        Paper.on_arxiv(
            "Towards Automated Circuit Discovery for Mechanistic Interpretability", 2023, "2304.14997", "NeurIPS"
        ),
        "The result depends on the order of cuts: from the answer down, later nodes first.",
        task="own",
        pairs=PAIRS,
        threshold=0.05,
    )

    def cost(self, spec: AcdcSpec, subject: StudiedModel) -> Cost:
        """At most a run per edge, and the scores to compare; `InvalidOption` if the model has too many edges."""
        graph = EdgeGraph(subject.model.config)
        if graph.edges > MAX_EDGES:
            detail = f"{subject.name} has {graph.edges:,} edges; acdc runs it once for each, up to {MAX_EDGES:,}."
            raise InvalidOption(detail, hint="edge-attribution takes a few runs for all edges together.", field="lm")
        batches = group_cases(make_cases(spec, subject), subject)
        tokens = sum(batch.tokens for batch in batches)
        cells = len(batches) * 4 + len(graph.targets)
        return Cost(2 * len(batches), 2 * tokens, cells, partial=tokens * (4 * spec.steps + 2 * graph.edges))

    def run(self, spec: AcdcSpec, subject: StudiedModel, progress: Progress) -> Report:
        cases, graph = make_cases(spec, subject), EdgeGraph(subject.model.config)
        cells = EdgeCells(subject, progress, group_cases(cases, subject), graph)
        try:
            scores, _ = cells.score_edges(spec.steps, "kl")
            whole, nothing = cells.measure(graph.exists), cells.measure(np.zeros_like(graph.exists))
            mask, trail = self._prune(spec, cells, progress)
            left = cells.measure(mask, "what is left")
        except (Cancelled, DeadlineExceeded):
            progress.stopped = True
            return Report(title=f"Pruned circuit of {spec.task}", warnings=["Stopped before the last cut: no circuit."])
        spans = nothing["logit_difference"] - whole["logit_difference"]
        circuit = list(graph.edges_of(mask))
        area = rank_agreement(scores, mask)
        scalars = {
            "prompts": Scalar(value=len(cases)),
            "edges": Scalar(value=graph.edges, note="Of the whole model."),
            "kept_edges": Scalar(value=len(circuit), note="Of the circuit that is left."),
            "measured": Scalar(value=sum(step["measured"] for step in trail), note="Circuits that were run."),
            "kl": Scalar(value=left["kl"], unit="nats", note="Divergence of the circuit from the whole model."),
            "logit_diff": Scalar(value=whole["logit_difference"], unit="logits", note="The whole model."),
            "logit_diff_circuit": Scalar(value=left["logit_difference"], unit="logits", note="The circuit alone."),
            "logit_diff_corrupt": Scalar(value=nothing["logit_difference"], unit="logits", note="No edge."),
            "attribution_auc": Scalar(value=area, note="Chance that EAP-IG ranks a kept edge above a cut one."),
        }
        links = [[graph.name(edge), float(scores[edge])] for edge in circuit]
        return Report(
            title=f"Pruned circuit of {spec.task}",
            warnings=[*spec.unread, *warn_of_task(whole, spans, len(cases))],
            scalars=scalars,
            tables=[_edge_table(graph, circuit, scores)],
            bars=[_left_bars(trail)],
            graphs=[draw_circuit(graph, circuit, scores)],
            artefacts=[Artefact.of("circuit.json", canonical_json(links))],
        )

    def _prune(self, spec: AcdcSpec, cells: EdgeCells, progress: Progress) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the circuit that is left, and per target what was kept, the divergence then, and runs."""
        graph, value = cells.graph, 0.0
        mask, trail = graph.exists.copy(), []
        facts = [batch.facts for batch in cells.batches]
        for row in reversed(range(len(graph.targets))):
            before = json_digest(np.packbits(mask).tobytes().hex())
            found = progress.cell(
                {"part": "acdc", "row": row, "before": before, "threshold": spec.threshold, "batches": facts},
                lambda row=row, mask=mask, value=value: _cut(cells, mask, row, value, spec.threshold),  # type: ignore[misc]
                str(graph.targets[row]),
            )
            mask = mask.copy()
            mask[row] = False
            mask[row, found["kept"]] = True
            value = found["value"]
            trail.append({**found, "left": int(mask.sum()), "target": str(graph.targets[row])})
        return mask, trail


def _cut(cells: EdgeCells, mask: np.ndarray, row: int, value: float, threshold: float) -> dict[str, Any]:
    """Cut edges of one target; one whose node writes to nobody any more needs no run."""
    if not _is_read(cells.graph, mask, row):
        return {"kept": [], "value": value, "measured": 0}
    kept, value, measured = prune_target(cells.graph, mask, row, value, lambda m: cells.score(m)["kl"], threshold)
    return {"kept": kept, "value": value, "measured": measured}


def _is_read(graph: EdgeGraph, mask: np.ndarray, row: int) -> bool:
    if row == len(graph.targets) - 1:
        return True
    return any(mask[:, i].any() for i, source in enumerate(graph.sources) if row in graph.readers(source))


def _edge_table(graph: EdgeGraph, circuit: list[tuple[int, int]], scores: np.ndarray) -> Table:
    ranks = {edge: i + 1 for i, edge in enumerate(sorted(graph.edges_of(graph.exists), key=lambda e: -abs(scores[e])))}
    rows = [[str(graph.sources[c]), str(graph.targets[r]), float(scores[r, c]), ranks[r, c]] for r, c in circuit]
    caption = "Edges that are left, with their score by EAP-IG and its rank among all edges."
    return Table.of("edges", "from, to, score, rank", rows, caption)


def _left_bars(trail: list[dict[str, Any]]) -> Bars:
    bars = [Bar(label=step["target"], value=step["value"]) for step in trail]
    caption = "Divergence from the whole model after the edges of each target were cut, in that order."
    return Bars(name="divergence", bars=bars, unit="nats", caption=caption)
