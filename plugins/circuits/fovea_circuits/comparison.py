"""Comparison of circuits: their overlap at several thresholds, and its route.

"Circuit Component Reuse Across Tasks" (2024), section 4. Knows arrays, reports and HTTP; knows no task.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption, Malformed
from services.interpretability.attention.head_scores import top_heads
from services.interpretability.attention.retrieval_score import Head
from services.interpretability.core.report import HeatMap, Report, Table, head_map, head_name
from services.interpretability.core.result_store import TenantResults
from services.interpretability.routes import HostOf, results_of
from shared.serving.http.openapi_routes import problems

router = APIRouter(prefix="/v1/probe", tags=["probe"])


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of two circuits.

    Attributes:
        first, second: The heads of each.
        shared: In both, ascending.
        union: In either, ascending.
        jaccard: Shared over union.
        coefficient: Shared over the smaller circuit.
        share: Shared over the first circuit.
    """

    first: list[Head]
    second: list[Head]
    shared: list[Head]
    union: list[Head]
    jaccard: float
    coefficient: float
    share: float


def overlap(first: Sequence[object], second: Sequence[object], fraction: float) -> Overlap:
    """Compare two circuits by their stages' importances [L,H]: per stage the top fraction, united over the stages."""
    one = {head for stage in first for head in top_heads(stage, fraction)}
    other = {head for stage in second for head in top_heads(stage, fraction)}
    shared, union = sorted(one & other), sorted(one | other)

    def per(count: int) -> float:
        return len(shared) / count if count else 0.0

    return Overlap(
        sorted(one), sorted(other), shared, union, per(len(union)), per(min(len(one), len(other))), per(len(one))
    )


class CompareRequest(BaseModel, extra="forbid"):
    """Two circuits: whole reports, or the keys of stored ones."""

    first: str | dict[str, Any] = Field(description="A report of circuits, or the key of a stored one.")
    second: str | dict[str, Any] = Field(description="Another one.")
    fractions: list[float] = Field([0.01, 0.02, 0.05, 0.1], min_length=1, max_length=20, description="Of all heads.")


@router.post("/circuits/compare", responses=problems(400, 404, 422))
async def compare_circuits(body: CompareRequest, request: Request, host: HostOf) -> Report:
    """Compare two circuits: how much they share, at several thresholds."""
    results = results_of(request, host)
    first = await asyncio.to_thread(_resolve_report, body.first, results, "first")
    second = await asyncio.to_thread(_resolve_report, body.second, results, "second")
    if bad := [fraction for fraction in body.fractions if not 0 < fraction <= 1]:
        detail = f"fractions holds {bad[0]}; shares of all heads lie above 0 and up to 1."
        raise InvalidOption(detail, field="fractions")
    first_maps, second_maps = _effect_maps(first, "first"), _effect_maps(second, "second")
    if len(shapes := {stage.shape for stage in (*first_maps, *second_maps)}) > 1:
        sizes = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
        raise InvalidOption(f"The circuits are of models of different size: {sizes} heads.", field="second")
    rows, grids = [], []
    for fraction in body.fractions:
        shared = overlap(first_maps, second_maps, fraction)
        grids.append(_overlap_map(shared, first_maps[0].shape, fraction))
        heads = " ".join(head_name(head) for head in shared.shared)
        counts: list[Any] = [len(shared.first), len(shared.second), len(shared.shared)]
        rows.append([fraction, *counts, shared.jaccard, shared.coefficient, shared.share, heads])
    columns = "fraction, first, second, shared, jaccard, of the smaller, of the first, heads"
    return Report(
        title="Overlap of two circuits",
        warnings=[w for r in (first, second) for w in r.warnings if "not solved" in w],
        tables=[Table.of("overlap", columns, rows, "Per stage the top fraction, united.")],
        grids=grids,
    )


def _overlap_map(shared: Overlap, shape: tuple[int, ...], fraction: float) -> HeatMap:
    """Both circuits on one map of all heads."""
    values = np.zeros(shape)
    for heads, value in ((shared.first, 0.5), (shared.second, -0.5), (shared.shared, 1.0)):
        for head in heads:
            values[head] = value
    caption = "Heads of both circuits: 1 is in both, 0.5 in the first only, −0.5 in the second only."
    return head_map(f"top {100 * fraction:g}%", values, caption, scale="diverging")


def _resolve_report(side: str | dict[str, Any], results: TenantResults, field: str) -> Report:
    if isinstance(side, str):
        return results.read_report(side)
    try:
        return Report.model_validate(side)
    except ValueError as error:
        raise Malformed(f"{field} is not a report.", field=field) from error


def _effect_maps(report: Report, field: str) -> list[np.ndarray]:
    tables = [grid.values for grid in report.grids if grid.name.startswith("effect")]
    if not tables or any(len({*map(len, values)}) != 1 or not values[0] for values in tables):
        raise InvalidOption(f"{field} has no effect map of all heads: it is not a report of circuits.", field=field)
    return [np.array(values, dtype=float) for values in tables]
