"""Edge-attribution experiment: which edges between heads and MLPs a task needs, and how much they do alone.

"Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms" (2024): edges scored by
gradients integrated between counterfactual and prompt (EAP-IG), a circuit grown greedily from the answer down, and its
faithfulness at growing size, against circuits grown from random scores.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from fovea.errors import Cancelled, DeadlineExceeded, InvalidOption
from fovea_circuits.experiments.circuits.run import make_cases
from fovea_circuits.experiments.circuits.spec import PAIRS, TaskSpec
from fovea_edges.cells import EdgeCells, group_cases
from fovea_edges.circuit_search import bracket_smallest, order_edges, random_scores
from fovea_edges.edge_graph import EdgeGraph
from fovea_edges.report import EdgeFindings, build_report
from services.interpretability.core.experiment import Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import Report
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Paper

SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Sizes that are measured by default, as shares of all edges."""

MAX_SEARCH = 8
"""Most circuits that the search for the smallest one measures."""


class EdgeAttributionSpec(TaskSpec):
    """Task, integral, sizes of circuits, and controls."""

    steps: int = Field(5, ge=1, le=100, description="Points of the integral; 1 is EAP, without integration.")
    metric: Literal["logit-difference", "kl"] = Field(
        "logit-difference", description="Metric by which edges are scored; kl: divergence from the model's own answer."
    )
    sizes: list[int] = Field(
        default_factory=list, max_length=50, description="Edges of the circuits that are measured; left out, ten sizes."
    )
    threshold: float = Field(0.85, gt=0, le=1, description="Faithfulness of the minimal circuit.")
    controls: int = Field(10, ge=1, le=100, description="Circuits per size from random scores.")


class EdgeAttribution(Experiment[EdgeAttributionSpec]):
    """Scores all edges, grows circuits from them, and measures what those do alone."""

    In = EdgeAttributionSpec
    route = "circuits/edges"
    card = probe_card(
        "edge-attribution",
        "Finds the edges behind a task by integrated gradients (EAP-IG), and what their circuit does alone.",
        Paper.on_arxiv(
            "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
            2024,
            "2403.17806",
            "COLM",
        ),
        "A score is an estimate to first order; faithfulness is measured.",
        "Faithfulness may be below 0 or above 1: edges that hinder the answer are left out, too.",
        task="own",
        pairs=PAIRS,
        controls=2,
        sizes=[4, 12, 30, 80],
    )

    def cost(self, spec: EdgeAttributionSpec, subject: StudiedModel) -> Cost:
        if spec.metric == "kl" and spec.steps == 1:
            detail = "At the prompt itself the divergence has no slope: scores of one step are rounding noise."
            raise InvalidOption(detail, hint="Ask for two steps or more, or for logit-difference.", field="steps")
        batches = group_cases(make_cases(spec, subject), subject)
        tokens = sum(batch.tokens for batch in batches)
        circuits = 2 + len(_sizes(spec, EdgeGraph(subject.model.config))) * (1 + spec.controls) + MAX_SEARCH
        cells = len(batches) * (1 + circuits)
        return Cost(2 * len(batches), 2 * tokens, cells, partial=tokens * (2 + 4 * spec.steps + 2 * circuits))

    def run(self, spec: EdgeAttributionSpec, subject: StudiedModel, progress: Progress) -> Report:
        cases, graph = make_cases(spec, subject), EdgeGraph(subject.model.config)
        batches = group_cases(cases, subject)
        cells = EdgeCells(subject, progress, batches, graph)
        findings = EdgeFindings(cases, batches, graph, spec.metric)
        try:
            self._measure(spec, cells, findings)
            self._grow(spec, cells, findings)
            self._shrink(spec, cells, findings)
        except (Cancelled, DeadlineExceeded):
            progress.stopped = True
        report = build_report(spec.task, spec.threshold, subject, findings)
        return report.model_copy(update={"warnings": [*spec.unread, *report.warnings]})

    def _measure(self, spec: EdgeAttributionSpec, cells: EdgeCells, findings: EdgeFindings) -> None:
        """Score all edges, and measure the model with all of them and with none."""
        scores, findings.parts = cells.score_edges(spec.steps, spec.metric)
        findings.nothing = cells.measure(np.zeros_like(findings.graph.exists), "no edge")
        findings.whole = cells.measure(findings.graph.exists, "all edges")
        findings.scores, findings.order = scores, order_edges(findings.graph, scores)

    def _grow(self, spec: EdgeAttributionSpec, cells: EdgeCells, findings: EdgeFindings) -> None:
        """Measure circuits of each size, then as large ones from random scores."""
        graph, sizes = findings.graph, _sizes(spec, findings.graph)
        for size in sizes:
            findings.curve[size] = cells.measure(graph.mask_of(findings.order[:size]), f"{size} edges")
        for draw in range(spec.controls):
            order = order_edges(graph, random_scores(graph, spec.seed, draw))
            for size in sizes:
                found = cells.measure(graph.mask_of(order[:size]), f"{size} random edges")
                findings.controls.setdefault(size, []).append(found)

    def _shrink(self, spec: EdgeAttributionSpec, cells: EdgeCells, findings: EdgeFindings) -> None:
        """Search by bisection for the smallest beginning of the order that is faithful enough.

        Results so far stay, wherever the search ends: the smallest known circuit is the answer.
        """
        sizes = sorted(findings.curve)
        bracket = bracket_smallest(sizes, [findings.faith(findings.curve[size]) for size in sizes], spec.threshold)
        if bracket is None:
            return
        low, findings.minimal = bracket
        for _ in range(MAX_SEARCH):
            if findings.minimal - low <= max(1, findings.minimal // 50):
                return
            size = (low + findings.minimal) // 2
            findings.curve[size] = cells.measure(findings.graph.mask_of(findings.order[:size]), f"{size} edges")
            if findings.faith(findings.curve[size]) >= spec.threshold:
                findings.minimal = size
            else:
                low = size


def _sizes(spec: EdgeAttributionSpec, graph: EdgeGraph) -> list[int]:
    """Sizes to measure, ascending; `InvalidOption` if one is not a number of edges of this model."""
    if bad := [size for size in spec.sizes if not 1 <= size <= graph.edges]:
        raise InvalidOption(f"sizes holds {bad[0]}; this model has {graph.edges:,} edges.", field="sizes")
    return sorted(set(spec.sizes) or {max(1, math.ceil(share * graph.edges)) for share in SHARES})
