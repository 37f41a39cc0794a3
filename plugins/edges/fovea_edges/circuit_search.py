"""Search for circuits in the edge graph: a greedy order of edges by score, the smallest faithful circuit, and pruning.

"Have Faith in Faithfulness" (2024) for the order and the measure, "Towards Automated Circuit Discovery" (ACDC, 2023)
for pruning. A circuit is measured by a function that its caller gives. Knows graphs and numbers; runs no model.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from fovea_edges.edge_graph import EdgeGraph

Edge = tuple[int, int]
"""(row of the target, column of the source)."""


def order_edges(graph: EdgeGraph, scores: np.ndarray) -> list[Edge]:
    """Order all edges so that each beginning is a circuit: from the answer down, the largest |score| that connects.

    An edge connects when its target belongs to a node that is in the circuit; ties go to the higher target. Scores are
    [R,S], NaN where there is no edge.
    """
    size = np.abs(np.nan_to_num(scores))
    waiting: list[tuple[float, int, int]] = []
    ordered: list[Edge] = []
    opened = np.zeros(len(graph.targets), bool)

    def open_row(row: int) -> None:
        if not opened[row]:
            opened[row] = True
            for column in np.flatnonzero(graph.exists[row]):
                heapq.heappush(waiting, (-size[row, column], -row, int(column)))

    open_row(len(graph.targets) - 1)
    while waiting:
        _, negative_row, column = heapq.heappop(waiting)
        ordered.append((-negative_row, column))
        for row in graph.readers(graph.sources[column]):
            open_row(row)
    return ordered


def random_scores(graph: EdgeGraph, seed: int, draw: int) -> np.ndarray:
    """Return random scores [R,S]: the control whose circuits connect as well as the real ones."""
    drawn: np.ndarray = np.random.default_rng((seed, draw)).random(graph.exists.shape)
    return drawn


def faithfulness(value: float, whole: float, corrupt: float) -> float:
    """Return (value − corrupt) / (whole − corrupt): 1 as the whole model, 0 as the corrupt run."""
    span = whole - corrupt
    return (value - corrupt) / span if abs(span) > 1e-6 else float("nan")


def bracket_smallest(sizes: Sequence[int], values: Sequence[float], threshold: float) -> tuple[int, int] | None:
    """Return the first of ascending sizes whose value reaches the threshold and the size before it; None without."""
    above = next((i for i, value in enumerate(values) if value >= threshold), None)
    if above is None:
        return None
    return (sizes[above - 1] if above else 0), sizes[above]


def prune_target(
    graph: EdgeGraph, mask: np.ndarray, row: int, value: float, measure: Callable[[np.ndarray], float], threshold: float
) -> tuple[list[int], float, int]:
    """Cut the edges of the target `row` that the divergence does not need (ACDC, one node).

    `mask` [R,S] is the circuit so far, `value` its divergence; an edge goes when the divergence grows by less than the
    threshold. Returns the columns that stay, the divergence then, and how many circuits were measured.
    """
    kept, measured = mask.copy(), 0
    for column in np.flatnonzero(graph.exists[row])[::-1]:
        if not kept[row, column]:
            continue
        kept[row, column] = False
        measured += 1
        changed = measure(kept)
        if changed - value < threshold:
            value = changed
        else:
            kept[row, column] = True
    return [int(column) for column in np.flatnonzero(kept[row])], value, measured


def rank_agreement(scores: np.ndarray, circuit: np.ndarray) -> float:
    """Return the chance that |score| puts an edge of the circuit above one outside (area under the ROC)."""
    given = ~np.isnan(scores)
    inside, outside = np.abs(scores[given & circuit]), np.abs(scores[given & ~circuit])
    if not len(inside) or not len(outside):
        return float("nan")
    ahead = np.searchsorted(np.sort(outside), inside, "left") + np.searchsorted(np.sort(outside), inside, "right")
    return float(ahead.mean() / 2 / len(outside))
