"""Routes of gaze: scanpaths, and the plan that a camera follows."""

import base64

import numpy as np
import pytest

from fovea_planning.models.oat import OatScanpathPredictor
from fovea_planning.models.planner import FoveaPlanner
from fovea_planning.plan_schema import PlanOut
from fovea_planning.scanpath_schema import ScanpathOut
from shared.vision.draw import encode
from tests.harness.models import answered, client_of, problem


def draw_product(colour: int, height: int) -> np.ndarray:
    product = np.full((48, 32, 3), (232, 228, 220), np.uint8)
    product[40 - height : 40, 6:26] = ((214, 40, 57), (38, 100, 214), (34, 150, 70))[colour]
    return product


PRODUCTS = [draw_product(index % 3, 5 + 4 * (index // 3)) for index in range(27)]
TARGET = 14
CROPS = [encode(product) for product in PRODUCTS]
PICTURE = encode(np.concatenate([np.concatenate(PRODUCTS[row : row + 9], axis=1) for row in (0, 9, 18)]))
BOXES = [(32.0 * (i % 9), 48.0 * (i // 9), 32.0 * (i % 9) + 32, 48.0 * (i // 9) + 48) for i in range(27)]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


FOUND = {"box": [0, 0, 9, 9], "score": 0.9, "label": "crack", "class_id": 0, "area": 81.0, "radius": 5.0}
BAD = FOUND | {"box": [0, "-inf", 9, 9]}
DETECTED = {"model": "m", "version": "1", "engine": "onnx", "width": 288, "height": 144, "counts": {}, "times": {}}
SHELF = {"image": text(PICTURE), "objects": BOXES, "target": TARGET}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {"oat": OatScanpathPredictor, "fovea-planner": FoveaPlanner}
    with client_of(tmp_path_factory.mktemp("fovea"), "detection", kinds) as made:
        yield made


@pytest.fixture(scope="module")
def plain(client):
    return answered(client.post("/v1/scanpath", json=SHELF), ScanpathOut)


def test_the_target_is_found_in_a_picture_in_crops_on_a_grid_and_among_objects_of_detect(plain, client):
    (path,) = plain.paths
    assert path.found
    assert path.fixations[-1].id == TARGET
    assert plain.layout == [list(range(row, row + 9)) for row in (0, 9, 18)]
    for fixation in path.fixations:
        x1, y1, x2, y2 = BOXES[fixation.id]
        assert fixation.centre == ((x1 + x2) / 2, (y1 + y2) / 2)
        assert 0 < fixation.probability <= 1
    shares = path.behaviour
    assert shares.search + shares.refixation + shares.revisit == pytest.approx(1, abs=1e-5)
    body = {"crops": [text(crop) for crop in CROPS], "grid": [3, 9], "target": TARGET}
    found = answered(client.post("/v1/scanpath", json=body), ScanpathOut)
    assert [f.id for f in found.paths[0].fixations] == [f.id for f in plain.paths[0].fixations]
    assert (found.width, found.height) == (288, 144)
    order = np.random.default_rng(0).permutation(27)
    detections = [
        {"box": BOXES[i], "score": 0.9, "label": f"product {i}", "class_id": int(i), "area": 1536.0, "radius": 20.0}
        for i in order
    ]
    detected = {**DETECTED, "detections": detections}
    body = {**SHELF, "objects": detected, "target": int(np.flatnonzero(order == TARGET)[0])}
    found = answered(client.post("/v1/scanpath", json=body), ScanpathOut).paths[0]
    assert [order[f.id] for f in found.fixations] == [f.id for f in plain.paths[0].fixations]
    assert found.fixations[0].label == f"product {order[found.fixations[0].id]}"


def test_drawn_paths_repeat_under_their_seed_never_look_at_missing_cells_and_one_alone_is_noted(client):
    body = {**SHELF, "mode": "sampled", "samples": 12, "seed": 3}
    first, again = (answered(client.post("/v1/scanpath", json=body), ScanpathOut) for _ in range(2))
    other = answered(client.post("/v1/scanpath", json={**body, "seed": 4}), ScanpathOut)
    assert first.paths == again.paths
    assert first.paths != other.paths
    assert len({tuple(f.id for f in path.fixations) for path in first.paths}) > 3
    assert first.found_share == pytest.approx(np.mean([path.found for path in first.paths]), abs=1e-4)
    kept = [i for i in range(27) if i != 3 or i == TARGET][:-4]
    body = {**SHELF, "objects": [BOXES[i] for i in kept], "target": 0, "mode": "sampled", "samples": 30}
    found = answered(client.post("/v1/scanpath", json=body), ScanpathOut)
    assert found.layout[-1][-1] is None
    assert {f.id for path in found.paths for f in path.fixations} <= set(range(len(kept)))
    found = answered(client.post("/v1/scanpath", json={**SHELF, "samples": 5}), ScanpathOut)
    assert (len(found.paths), found.notes[-1][:26]) == (1, "mode=greedy gives one path")


def test_a_reference_is_compared(client, plain):
    same = [f.id for f in plain.paths[0].fixations]
    alike = answered(client.post("/v1/scanpath", json={**SHELF, "reference": same}), ScanpathOut).paths[0].likeness
    assert (alike.sequence_score, alike.vector, alike.position) == (1, 1, 1)
    other = answered(client.post("/v1/scanpath", json={**SHELF, "reference": [(TARGET + 5) % 27, 0, 26]}), ScanpathOut)
    assert other.paths[0].likeness.sequence_score < 1
    assert other.paths[0].likeness.sim < alike.sim
    assert other.paths[0].likeness.nss < alike.nss
    ragged = {**SHELF, "objects": [BOXES[i] for i in (0, 1, 9)], "target": 1}  # and a cell without an object
    path = answered(client.post("/v1/scanpath", json=ragged), ScanpathOut).paths[0]
    ragged["reference"] = [f.id for f in path.fixations]
    alike = answered(client.post("/v1/scanpath", json=ragged), ScanpathOut).paths[0].likeness
    chances = np.mean([f.probability for f in path.fixations])
    assert (alike.sim, alike.nss <= np.sqrt(2)) == (pytest.approx(chances, abs=0.01), True), "of three objects no more"


@pytest.mark.parametrize(("body", "status", "field"), [
    ({"target": 0}, 422, "image"), ({**SHELF, "crops": [text(CROPS[0])]}, 422, "crops"),
    ({"image": SHELF["image"], "target": 0}, 422, "objects"), ({**SHELF, "grid": [3, 9]}, 422, "grid"),
    ({"crops": [text(CROPS[0])], "grid": [1, 1], "objects": BOXES, "target": 0}, 422, "objects"),
    ({**SHELF, "target": 27}, 422, "target"), ({**SHELF, "target": -1}, 422, "target"),
    ({**SHELF, "reference": [99]}, 422, "reference"),
    ({**SHELF, "objects": [[0, 0, 0, 0]], "target": 0}, 422, "objects"),
    ({**SHELF, "objects": [[0.0, 0.0, 5.0]]}, 422, "objects"),
    *(({**SHELF, "objects": [[0, 0, bad, 9], *BOXES]}, 422, "objects") for bad in ("inf", "nan")),
    ({**SHELF, "target": 0, "objects": DETECTED | {"detections": [BAD]}}, 422, "objects"),
    ({**SHELF, "objects": [[2.0 * i, 0, 2.0 * i + 2, 40] for i in range(40)]}, 422, "objects"),
    ({**SHELF, "objects": DETECTED | {"detections": [FOUND] * 577}}, 422, "objects"),
    ({**SHELF, "image": text(b"no picture")}, 415, "image"), ({"crops": [text(CROPS[0])], "target": 0}, 422, "grid"),
    ({"crops": [text(CROPS[0])], "grid": [2, 2], "target": 0}, 422, "grid"),
    ({"crops": [text(b"no picture")], "grid": [1, 1], "target": 0}, 415, "crops"),
])  # fmt: skip
def test_mistakes_are_named(client, body, status, field):
    problem(client.post("/v1/scanpath", json=body), status, field)


POINTS = np.random.default_rng(0).random((9, 2)).round(4)


def test_detections_become_a_route_and_batches_are_answered_set_by_set_by_whoever_proposed(client):
    boxes = [[x * 100, y * 100, x * 100 + 10, y * 100 + 10] for x, y in POINTS.tolist()]
    detections = [FOUND | {"box": box} for box in boxes]
    detected = {**DETECTED, "detections": detections}
    route = answered(client.post("/v1/plan", json={"task": "tsp", "detections": detected}), PlanOut)
    plain = answered(client.post("/v1/plan", json={"task": "tsp", "points": POINTS.tolist()}), PlanOut)
    assert (route.order, route.objective) == (plain.order, pytest.approx(100 * plain.objective))
    assert route.points[0] == pytest.approx((POINTS[0] * 100 + 5).tolist())
    columns = {"xyxy": boxes, "confidence": [0.9] * 9, "class_id": [0] * 9, "class_names": {"0": "crack"}}
    detected = {**DETECTED, "detections": [], "columns": columns}
    assert answered(client.post("/v1/plan", json={"task": "tsp", "detections": detected}), PlanOut).order == plain.order
    sets = np.random.default_rng(1).random((6, 8, 2)).tolist()
    found = answered(client.post("/v1/plan", json={"task": "tsp", "batch": sets}), PlanOut)
    alone = [answered(client.post("/v1/plan", json={"task": "tsp", "points": points}), PlanOut) for points in sets]
    assert (len(found.plans), found.order) == (6, found.plans[0].order)
    for together, single in zip(found.plans, alone, strict=True):
        assert together.objective >= single.objective - 1e-9
        assert together.objective <= 1.1 * single.objective
        assert together.lower_bound <= single.objective + 1e-9
    sets = np.random.default_rng(3).random((60, 7, 2)).tolist()
    found = answered(client.post("/v1/plan", json={"task": "hull", "batch": sets}), PlanOut).plans
    assert np.mean([plan.solver == "pointer" for plan in found]) > 0.85
    assert all(plan.certified for plan in found)
    assert all(len(plan.step_probabilities) == len(plan.order) + 1 for plan in found if plan.solver == "pointer")


@pytest.mark.parametrize(("body", "field"), [
    ({"task": "tsp"}, "points"), ({"task": "knapsack", "points": [[0, 0]]}, "task"),
    ({"task": "tsp", "points": []}, "points"), ({"task": "hull", "points": [[0, 0], [1, 1], [2, 2]]}, "points"),
    ({"task": "tsp", "points": [[0, 0], [1, 1]], "batch": [[[0, 0]]]}, "batch"),
    ({"task": "tsp", "points": [[0, 0, 0]]}, "points"), ({"task": "tsp", "points": [[0, 0]] * 2001}, "points"),
    ({"task": "tsp", "points": [[0, 0]], "speed": 1}, "speed"),
    *(({"task": "tsp", "detections": {**DETECTED, "detections": found}}, "detections")
      for found in ([], [FOUND, BAD], [FOUND] * 3001)),
])  # fmt: skip
def test_mistakes_about_plans_are_named(client, body, field):
    problem(client.post("/v1/plan", json=body), 422, field)
