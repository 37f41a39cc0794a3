"""The planner as a Servable: points or detections in, a verified plan out, and a map of it.

Knows the wire type and pictures; what is solved and proven is in `planning`.
"""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from prometheus_client import Counter, Histogram
from pydantic import BaseModel

from fovea.errors import FoveaError, InvalidOption, NotReady
from fovea_planning.plan_schema import PlanFacts, PlanIn, PlanOut
from fovea_planning.solvers import Pointers, name_set, plans
from shared.registry import CallContext, Card, LoadContext, Servable
from shared.registry.weights import Weights, find_weights, read_weights
from shared.vision.draw import encode

_CERTIFIED = Counter("plan_certified_total", "Plans that were certified.", ["task", "solver"])
_GAP = Histogram("plan_gap", "Optimality gap of tours.", ["task"], buckets=(0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
_FALLBACK = Counter("plan_fallback_total", "Plans that another solver answered than the one asked for.", ["reason"])

MAX_DETECTIONS = 3000
"""Most objects of a detector's answer, as of `/v1/detect`: time and memory of a tour grow with their square."""

_SIDE, _MARGIN = 720, 56
_INK, _PALE, _GOOD, _OPEN = (40, 44, 52), (196, 204, 216), (0, 140, 80), (200, 120, 0)


class Planner(Servable[PlanIn, PlanOut]):
    """Plans over points, with two pointer networks that propose inside their trained range.

    Class attributes:
        weights: Names of their weights: hulls, and tours.
        folder: Where the weights that come with the package are.
    """

    In: ClassVar[type[BaseModel]] = PlanIn
    Out: ClassVar[type[BaseModel]] = PlanOut
    weights: ClassVar[tuple[str, str]]
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"

    def __init__(self, card: Card, pointers: Pointers | None) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.pointers = pointers

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        """Verify the weights of both networks; where they are left out, plans are made without them.

        Raises NotReady: weights are not what their manifest says.
        """
        try:
            files = [find_weights(name, cls.folder, context.weights) for name in cls.weights]
        except NotReady as error:
            note = f"{error.detail} Exact solvers and heuristics answer."
            return cls(cls.card.model_copy(update={"notes": (*cls.card.notes, note)}), None)
        hull, tour = map(read_weights, files)
        return cls(_refined(cls.card, hull, tour), Pointers.of(hull, tour))

    def predict(self, batch: Sequence[PlanIn], run: CallContext) -> list[PlanOut | FoveaError]:
        return [self._attempt(request, run) for request in batch]

    def render(self, request: PlanIn, answer: PlanOut, media_type: str) -> bytes | None:
        if media_type == "text/csv":
            return _csv(_sets(request), answer)
        return encode(draw_plan(answer)) if media_type == "image/png" else None

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        return ("image/png", "text/csv")

    def _attempt(self, request: PlanIn, run: CallContext) -> PlanOut | FoveaError:
        run.check()
        begun = time.perf_counter()
        try:
            sets = _sets(request)
            made: list[PlanFacts] = []
            groups = _together(sets, request)
            for index, points in enumerate(groups):
                run.check()
                with name_set(index, len(groups)):
                    found = plans(request.task, points, request.solver, request.time_limit, self.pointers)
                made += [PlanFacts(**asdict(plan)) for plan in found]
                _count(request, made[-len(found) :])
        except InvalidOption as error:
            if request.detections is not None and error.field == "points":
                error.field = "detections"
            return error
        return PlanOut(
            **made[0].model_dump(),
            model=self.card.name,
            version=self.card.version,
            points=sets[0].tolist(),
            plans=made if request.batch else [],
            ms=round((time.perf_counter() - begun) * 1000, 2),
        )


def _count(request: PlanIn, made: Sequence[PlanFacts]) -> None:
    """Count who solved each plan, how far it may be from the best, and where another solver answered than asked."""
    for plan in made:
        if plan.certified:
            _CERTIFIED.labels(plan.task, plan.solver).inc()
        if plan.task == "tsp" and plan.optimality_gap is not None:
            _GAP.labels(plan.task).observe(plan.optimality_gap)
        if request.solver not in {"auto", plan.solver}:
            _FALLBACK.labels(f"{request.solver} asked").inc()


def _sets(request: PlanIn) -> list[np.ndarray]:
    """The sets of points of a request.

    Raises InvalidOption: none or several of its three forms are there, or a set is empty.
    """
    forms = {"points": request.points, "detections": request.detections, "batch": request.batch or None}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        detail = f"{' and '.join(given)} were sent." if given else "No points were sent."
        raise InvalidOption(detail, hint="Send points, detections or batch.", field=given[1] if given else "points")
    if (found := request.detections) is not None:
        boxes = np.array(found.columns.xyxy if found.columns else [one.box for one in found.detections]).reshape(-1, 4)
        if not 0 < len(boxes) <= MAX_DETECTIONS:
            detail = (
                f"The answer of the detector holds {len(boxes):,} objects; 1 to {MAX_DETECTIONS:,} are planned over."
            )
            raise InvalidOption(detail, field="detections")
        return [(boxes[:, :2] + boxes[:, 2:]) / 2]
    sets = request.batch or (request.points or (),)
    return [np.array(points, float).reshape(-1, 2) for points in sets]


def _together(sets: list[np.ndarray], request: PlanIn) -> list[list[np.ndarray]]:
    """All sets at once where they are small; one by one where each may take its time, so that a run can be stopped."""
    small = request.task != "tsp" or (request.solver != "heuristic" and all(len(points) <= 10 for points in sets))
    return [sets] if small else [[points] for points in sets]


def _csv(sets: Sequence[np.ndarray], answer: PlanOut) -> bytes:
    """One row a step with its point; of triangles one row each; of a batch, the set of each in front."""
    page = io.StringIO()
    writer = csv.writer(page)
    columns = ["a", "b", "c"] if answer.task == "delaunay" else ["step", "index", "x", "y"]
    writer.writerow([*(["set"] if answer.plans else []), *columns])
    for number, (points, plan) in enumerate(zip(sets, answer.plans or [answer], strict=True)):
        steps = ([step, index, *points[index].tolist()] for step, index in enumerate(plan.order or ()))
        rows = steps if plan.triangles is None else plan.triangles
        writer.writerows([*([number] if answer.plans else []), *row] for row in rows)
    return page.getvalue().encode()


def draw_plan(answer: PlanOut) -> np.ndarray:
    """The points, what was planned over them, and how sure it is: (h, w, 3). The y axis points up."""
    points = np.array(answer.points)
    low, span = points.min(0), max(float(np.ptp(points, axis=0).max()), 1e-12)
    places = _MARGIN + (points - low) / span * (_SIDE - 2 * _MARGIN)
    places[:, 1] = _SIDE - places[:, 1]
    page = Image.new("RGB", (_SIDE, _SIDE + 40), (255, 255, 255))
    pen = ImageDraw.Draw(page)
    dots = [(float(x), float(y)) for x, y in places]
    for triangle in answer.triangles or []:
        pen.polygon([dots[corner] for corner in triangle], outline=(38, 100, 214))
    if answer.order and len(answer.order) > 1:
        closed = [dots[index] for index in (*answer.order, answer.order[0])]
        if answer.task == "hull":
            pen.polygon(closed[:-1], fill=(232, 240, 252))
        pen.line(closed, fill=(38, 100, 214), width=3)
    _dots(pen, dots, answer.order)
    text, colour = _badge(answer)
    pen.text((_MARGIN, _SIDE + 8), text, fill=colour, font=ImageFont.load_default(18))
    return np.asarray(page)


def _dots(pen: ImageDraw.ImageDraw, dots: list[tuple[float, float]], order: list[int] | None) -> None:
    """Every point; those of the order with their step where there is room for numbers."""
    steps = {index: step for step, index in enumerate(order or [], start=1)}
    numbered, font = len(dots) <= 60, ImageFont.load_default(12)
    for index, (x, y) in enumerate(dots):
        radius = 9 if numbered and index in steps else 3
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_INK if index in steps else _PALE)
        if numbered and index in steps:
            pen.text((x, y), str(steps[index]), fill=(255, 255, 255), font=font, anchor="mm")


def _badge(answer: PlanOut) -> tuple[str, tuple[int, int, int]]:
    """The proven property, in words, and its colour."""
    what = {"hull": f"area {answer.objective:.6g}", "tsp": f"length {answer.objective:.6g}"}.get(
        answer.task, f"{len(answer.triangles or [])} triangles"
    )
    if answer.certified:
        return f"{what} · {'optimal' if answer.task == 'tsp' else 'verified'} · {answer.solver}", _GOOD
    return f"{what} · within {100 * answer.optimality_gap:.1f} % · {answer.solver}", _OPEN


def _refined(card: Card, hull: Weights, tour: Weights) -> Card:
    """The Card with the facts of both sets of weights; its digest is that of the hull's."""
    measured = hull.manifest.metrics | tour.manifest.metrics
    metrics = tuple(m.model_copy(update={"ours": measured.get(m.name)}) for m in card.metrics)
    notes = (*card.notes, f"Weights of the tours: sha256 {tour.manifest.sha256}.")
    sizes = [weights.manifest.parameters or 0 for weights in (hull, tour)]
    return card.model_copy(
        update={"weights": hull.manifest.sha256, "parameters": sum(sizes), "metrics": metrics, "notes": notes}
    )
