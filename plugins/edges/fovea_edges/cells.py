"""Cells of one run of edge attribution: scores per batch of prompts, and what each circuit does on each batch.

Every cell depends on its batch and its circuit alone, so it can be cached. Knows tensors; knows no report.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fovea_circuits.circuit_tasks import Case, CaseBatch, group_by_length, split_batches
from fovea_edges.edge_attribution import attribute_edges, score_circuit
from fovea_edges.edge_graph import EdgeGraph
from fovea_edges.edge_runs import EdgeRun, run_edges
from services.interpretability.core.experiment import Progress
from services.interpretability.core.report import json_digest, to_matrix
from services.interpretability.core.studied_model import StudiedModel

CircuitScores = dict[str, float]
"""`logit_difference`, `above`, `kl` and `top1` of a circuit, mean over prompts."""

MAX_WRITTEN_BYTES = 128 * 2**20
"""Bound on S·B·T·D·4 of one batch; four such tensors are held at a time."""

MAX_HELD_BYTES = 2 * 2**30
"""Bound on the recorded runs that stay in memory; past it they are recorded again for each circuit."""


def group_cases(cases: Iterable[Case], subject: StudiedModel) -> list[CaseBatch]:
    """Group cases by length so that what all sources write to one batch fits in memory."""
    config = subject.model.config
    return split_batches(group_by_length(cases), len(EdgeGraph(config).sources) * config.width * 4, MAX_WRITTEN_BYTES)


@dataclass
class EdgeCells:
    """The cells of one run, over batches of prompts of equal length."""

    subject: StudiedModel
    progress: Progress
    batches: list[CaseBatch]
    graph: EdgeGraph
    _runs: dict[int, tuple[EdgeRun, EdgeRun]] = field(default_factory=dict)

    @property
    def weights(self) -> list[int]:
        """Prompts of each batch."""
        return [len(batch.cases) for batch in self.batches]

    def score_edges(self, steps: int, metric: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return scores of all edges [R,S], mean over prompts, and the cell of each batch; `Cancelled` if stopped."""
        found = [
            self.progress.cell(
                {"part": "edges", "steps": steps, "metric": metric, **batch.facts},
                lambda i=i: self._attribute(i, steps, metric),  # type: ignore[misc]  # mypy infers no defaults
            )
            for i, batch in enumerate(self.batches)
        ]
        scores = np.full(self.graph.exists.shape, np.nan)
        scores[self.graph.exists] = np.average([cell["edges"] for cell in found], axis=0, weights=self.weights)
        return scores, found

    def measure(self, mask: np.ndarray, note: str = "") -> CircuitScores:
        """Return what a circuit does, mean over all prompts; `Cancelled` if the run was stopped."""
        key = json_digest(np.packbits(mask).tobytes().hex())
        return self.average([self.measure_batch(i, mask, key, note) for i in range(len(self.batches))])

    def measure_batch(self, i: int, mask: np.ndarray, key: str, note: str = "") -> CircuitScores:
        """Return what a circuit does on one batch."""
        content = {"part": "circuit", "mask": key, **self.batches[i].facts}
        found: CircuitScores = self.progress.cell(content, lambda: self._score(i, mask), note)
        return found

    def score(self, mask: np.ndarray) -> CircuitScores:
        """Return what a circuit does, mean over all prompts, at once: no cell of its own."""
        return self.average([self._score(i, mask) for i in range(len(self.batches))])

    def average(self, cells: list[CircuitScores]) -> CircuitScores:
        """Mean over prompts of batch means."""
        return {name: float(np.average([cell[name] for cell in cells], weights=self.weights)) for name in cells[0]}

    def _attribute(self, i: int, steps: int, metric: Any) -> Mapping[str, Any]:
        clean, corrupt = self._runs_of(i)
        found = attribute_edges(self.subject.model, clean, corrupt, self._answers(i), steps=steps, metric=metric)
        return {
            "edges": found.edges[self.graph.exists].tolist(),
            "placed": to_matrix(found.placed),
            "entry": to_matrix(found.entry),
            "probability": float(clean.last[0].softmax(-1)[self.batches[i].cases[0].correct]),
        }

    def _score(self, i: int, mask: np.ndarray) -> CircuitScores:
        clean, corrupt = self._runs_of(i)
        return score_circuit(self.subject.model, clean, corrupt, self._answers(i), mask)

    def _runs_of(self, i: int) -> tuple[EdgeRun, EdgeRun]:
        """Clean and corrupt run of a batch; the last few stay in memory."""
        if i not in self._runs:
            held = sum(run.written.nbytes for pair in self._runs.values() for run in pair)
            if held > MAX_HELD_BYTES:
                self._runs.clear()
            batch, model = self.batches[i], self.subject.model
            clean, corrupt = (run_edges(model, self.subject.tensor(ids)) for ids in (batch.clean, batch.corrupt))
            self._runs[i] = clean, corrupt
        return self._runs[i]

    def _answers(self, i: int) -> Tensor:
        return self.subject.tensor(self.batches[i].answers)
