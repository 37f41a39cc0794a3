"""`POST /v1/plan` as people use it: points, detections, batches; the map, the table, each mistake."""

import numpy as np
import pytest

from fovea.api.plan import PlanOut
from services.detection.models.planner import FoveaPlanner
from services.detection.planning.geometry import hull
from tests.harness.models import answered, client_of, problem

POINTS = np.random.default_rng(0).random((9, 2)).round(4)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with client_of(tmp_path_factory.mktemp("fovea"), "detection", {"fovea-planner": FoveaPlanner}) as made:
        yield made


@pytest.mark.parametrize("task", ["hull", "delaunay", "tsp"])
def test_each_task_is_answered_and_certified(client, task):
    found = answered(client.post("/v1/plan", json={"task": task, "points": POINTS.tolist()}), PlanOut)
    assert found.certified
    assert found.optimality_gap == 0
    assert (found.order is None) == (task == "delaunay")
    if task == "hull":
        assert found.order == hull(POINTS)


def test_detections_become_a_route_through_their_middles(client):
    boxes = [[x * 100, y * 100, x * 100 + 10, y * 100 + 10] for x, y in POINTS.tolist()]
    detections = [
        {"box": box, "score": 0.5, "label": "crack", "class_id": 0, "area": 100.0, "radius": 5.0} for box in boxes
    ]
    facts = {"model": "m", "version": "1", "engine": "onnx", "width": 200, "height": 200, "times": {}}
    detected = {**facts, "detections": detections, "counts": {"crack": 9}}
    route = answered(client.post("/v1/plan", json={"task": "tsp", "detections": detected}), PlanOut)
    plain = answered(client.post("/v1/plan", json={"task": "tsp", "points": POINTS.tolist()}), PlanOut)
    assert (route.order, route.objective) == (plain.order, pytest.approx(100 * plain.objective))
    assert route.points[0] == pytest.approx((POINTS[0] * 100 + 5).tolist())


def test_a_batch_is_answered_set_by_set(client):
    sets = np.random.default_rng(1).random((6, 8, 2)).tolist()
    found = answered(client.post("/v1/plan", json={"task": "tsp", "batch": sets}), PlanOut)
    alone = [answered(client.post("/v1/plan", json={"task": "tsp", "points": points}), PlanOut) for points in sets]
    assert (len(found.plans), found.order) == (6, found.plans[0].order)
    for together, single in zip(found.plans, alone, strict=True):
        assert together.objective >= single.objective - 1e-9
        assert together.objective <= 1.1 * single.objective
        assert together.lower_bound <= single.objective + 1e-9


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"task": "tsp"}, "points"),
        ({"task": "knapsack", "points": [[0, 0]]}, "task"),
        ({"task": "tsp", "points": []}, "points"),
        ({"task": "hull", "points": [[0, 0], [1, 1], [2, 2]]}, "points"),
        ({"task": "tsp", "points": [[0, 0], [1, 1]], "batch": [[[0, 0]]]}, "batch"),
        ({"task": "tsp", "points": [[0, 0, 0]]}, "points"),
        ({"task": "tsp", "points": [[0, 0]] * 2001}, "points"),
        ({"task": "tsp", "points": [[0, 0]], "time_limit": 0}, "time_limit"),
        ({"task": "tsp", "points": [[0, 0]], "solver": "oracle"}, "solver"),
        ({"task": "tsp", "points": [[0, 0]], "speed": 1}, "speed"),
    ],
)
def test_mistakes_are_named(client, body, field):
    problem(client.post("/v1/plan", json=body), 422, field)


def test_most_hulls_are_those_that_the_network_proposed(client):
    sets = np.random.default_rng(3).random((60, 7, 2)).tolist()
    found = answered(client.post("/v1/plan", json={"task": "hull", "batch": sets}), PlanOut).plans
    assert np.mean([plan.solver == "pointer" for plan in found]) > 0.85
    assert all(plan.certified for plan in found)
    assert all(len(plan.step_probabilities) == len(plan.order) + 1 for plan in found if plan.solver == "pointer")
