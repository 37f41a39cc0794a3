"""Plans on the wire: points in, a verified hull, triangulation or closed tour out.

An index is the place of a point in the list that was sent; of a detector's answer the points are the boxes' middles.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from fovea.api.boxes import DetectOut
from fovea_planning.scanpath_schema import parse_objects

Point = tuple[float, float]
Points = Annotated[tuple[Point, ...], Field(max_length=2000)]


class PlanIn(BaseModel, extra="forbid", frozen=True):
    """Points, and what to make of them: send `points`, `detections` or `batch`."""

    task: Literal["hull", "delaunay", "tsp"] = Field(
        description="hull: smallest convex polygon; delaunay: triangles between neighbours; tsp: shortest closed tour."
    )
    model: str | None = Field(None, description="Which model; left out, the default one.")
    points: Annotated[Points | None, BeforeValidator(parse_objects)] = Field(
        None, description="x, y of each point, at most 2000."
    )
    detections: Annotated[DetectOut | None, BeforeValidator(parse_objects)] = Field(
        None, description="An answer of /v1/detect: a hull around a cluster of damage, or a route through all of it."
    )
    batch: Annotated[tuple[Points, ...], Field(max_length=256), BeforeValidator(parse_objects)] = Field(
        (), description="Several sets of points; small ones of one size are planned together."
    )
    solver: Literal["auto", "pointer", "exact", "heuristic"] = Field(
        "auto", description="Solver that proposes; its answer is verified."
    )
    time_limit: float = Field(2.0, gt=0, le=30, description="Seconds for one tour that can't be proven.")


class PlanFacts(BaseModel):
    """One plan."""

    task: Literal["hull", "delaunay", "tsp"]
    order: list[int] | None = Field(None, description="Hull, counter-clockwise; or closed tour from point 0.")
    triangles: list[tuple[int, int, int]] | None = None
    objective: float = Field(description="Area of the hull, length of the tour; 0 for triangles.")
    lower_bound: float = Field(description="No tour is shorter than this.")
    certified: bool = Field(description="Proven to be right; of a tour, to be shortest.")
    solver: str = Field(description="Solver that answered: pointer, qhull, exact or heuristic.")
    optimality_gap: float = Field(description="objective / lower_bound - 1.")
    step_probabilities: list[float] | None = Field(None, description="Of each step of a learned hull.")
    notes: list[str] = Field(default_factory=list, description="Why somebody else answered than was asked.")


class PlanOut(PlanFacts):
    """The plan; of a batch the first, and all of them in `plans`."""

    model: str
    version: str
    points: list[Point] = Field(description="The points of this plan.")
    plans: list[PlanFacts] = Field(default_factory=list, description="Of a batch: one for each set, in order.")
    ms: float = Field(description="Milliseconds for all of it.")
