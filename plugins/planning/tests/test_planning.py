"""Planning: geometry and solvers, the pointer network, and the commands."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from fovea_planning.models.planner import FoveaPlanner
from fovea_planning.models.pointer_net import PointerNet
from fovea_planning.plan_schema import PlanIn
from fovea_planning.solvers import InvalidPoints, Pointers, plan, plans
from fovea_planning.solvers.exact import optimal_tours, tour_lengths
from fovea_planning.solvers.geometry import area, hull, hull_successors
from fovea_planning.solvers.geometry import polygon_is_valid as valid
from fovea_planning.solvers.heuristic import improve_tour
from fovea_planning.solvers.lower_bound import tour_bound
from fovea_planning.solvers.pointer_inference import PointerInference
from fovea_planning.solvers.pointer_solver import left_turn_mask, normalise_points, predict_hulls
from shared.registry import CallContext, network
from tests.golden import read_golden
from tests.harness.hypothesis_profiles import in_depth

GOLDEN = Path(__file__).parent / "golden"

LABELS = read_golden(GOLDEN / "combinatorial_labels.arrays")


@pytest.mark.parametrize("task", ["hull", "delaunay"])
def test_a_table_of_a_batch_has_the_plans_of_all_its_sets(task):
    batch = [[(0, 0), (4, 0), (0, 3)], [(9, 9), (8, 9), (8, 8), (9, 8)]]
    planner = FoveaPlanner(FoveaPlanner.card, None)
    for form in ({"points": batch[1]}, {"batch": batch}):
        request = PlanIn(task=task, **form)
        (answer,) = planner.predict([request], CallContext())
        table = (planner.render(request, answer, "text/csv") or b"").decode().splitlines()
        sizes = [len(one.order or one.triangles or ()) for one in answer.plans or [answer]]
        assert (table[0].startswith("set,"), len(table)) == ("batch" in form, 1 + sum(sizes))
    assert [row.split(",")[0] for row in table[1:]] == [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    if task == "hull":
        assert table[-1].split(",")[3:] == [str(float(x)) for x in batch[1][answer.plans[1].order[-1]]]


@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_hulls_and_triangles_equal_the_golden_ones(n):
    for points, order, size in zip(*(LABELS[f"hull{n}_{k}"] for k in ("points", "seq", "area")), strict=True):
        found = plan("hull", points)
        assert found.order == [index for index in order.tolist() if index >= 0]
        assert (found.objective, found.certified) == (pytest.approx(size), True)
    if n != 20:
        for points, corners in zip(LABELS[f"del{n}_points"], LABELS[f"del{n}_triangles"], strict=True):
            found = plan("delaunay", points)
            assert found.triangles == [tuple(row) for row in corners.tolist() if row[0] >= 0]
            assert found.certified


def test_corners_areas_and_crossings_of_small_polygons_and_of_points_at_one_place():
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert area(square * 1e-3 + [1000, -1000], range(4)) == pytest.approx(1e-6, rel=1e-7)
    assert area(square, [0, 3, 2, 1]) == -1
    assert [valid(square, order) for order in ([0, 1, 2, 3], [0, 2, 1, 3], [0, 1], [0, 1, 1])] == [True, *[False] * 3]
    square = np.array([[0, 0], [1, 0], [2, 0], [2, 2], [0, 2], [1, 1]])
    for found in (plan("hull", square), plan("hull", square + 1e6)):
        assert (found.order, found.objective) == ([0, 2, 3, 4], pytest.approx(4, rel=1e-3))
    points = [[0, 0], [1, 1], [1, 2], [1, 0], [2, 2], [2, 0], [0, 0], [2, 2], [0, 2], [1, 0], [2, 0], [0, 2]]
    for order in (range(12), range(11, -1, -1)):
        turned = [points[index] for index in order]
        corners = {turned.index(corner) for corner in ([0, 0], [2, 0], [2, 2], [0, 2])}
        assert set(plan("hull", turned).order or ()) == corners
        named = {index for triangle in plan("delaunay", turned).triangles or () for index in triangle}
        assert named == {turned.index(point) for point in turned}


@pytest.mark.parametrize("n", [5, 8, 10])
def test_small_tours_equal_the_optimum_and_are_certified(n):
    for points, order, length in zip(*(LABELS[f"tsp{n}_{k}"] for k in ("points", "opt_tour", "opt_len")), strict=True):
        found = plan("tsp", points)
        assert (found.order, found.objective) == (order.tolist(), pytest.approx(length))
        assert (found.certified, found.optimality_gap, found.solver) == (True, 0, "exact")


@pytest.mark.timed("how near a tour comes depends on how far half a second of the processor goes")
@pytest.mark.parametrize("n", in_depth([20, 50], [20]))
def test_large_tours_are_near_the_best_known_and_bounded(n):
    ratios = []
    for points, length in zip(LABELS[f"tsp{n}_points"], LABELS[f"tsp{n}_lkh_len"], strict=True):
        found = plan("tsp", points, time_limit=0.5)
        assert sorted(found.order) == list(range(n))
        assert found.lower_bound <= length + 1e-9
        assert found.optimality_gap <= 0.12
        assert not found.certified or found.objective <= length + 1e-9
        ratios.append(found.objective / length)
    assert max(ratios) <= 1.08
    assert np.mean(ratios) <= 1.03


@given(st.integers(4, 9), st.integers(0, 2**32 - 1))
def test_no_tour_is_shorter_than_the_bound(n, seed):
    points = np.random.default_rng(seed).random((n, 2))
    best = float(optimal_tours(points[None])[1][0])
    bound = tour_bound(points, best * 1.05)
    assert bound <= best + 1e-9
    assert bound >= 0.7 * best


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scale", [1e-14, 1e3, 1.1e11])
def test_improvement_ends_and_improves_at_every_scale(scale):
    for seed in range(20):
        steps = np.random.default_rng(seed).integers(0, 60, 40) / 7
        points = scale * np.stack([steps, steps * 3.3], 1) + scale
        tour = np.array(improve_tour(points, list(range(40))))
        assert tour_lengths(points, tour) == pytest.approx(2 * np.hypot(*np.ptp(points, axis=0)))


@given(st.integers(4, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_improvement_keeps_a_permutation_and_never_lengthens(n, seed, repeated):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, (n, 2)).astype(float) if repeated else rng.random((n, 2))
    tour = rng.permutation(n)
    better = improve_tour(points, tour.tolist())
    assert sorted(better) == list(range(n))
    assert tour_lengths(points, np.array(better)) <= tour_lengths(points, tour) + 1e-9


@given(st.integers(4, 12), st.integers(0, 2**32 - 1))
def test_successors_of_many_instances_follow_the_hull(n, seed):
    points = np.random.default_rng(seed).random((3, n, 2))
    for instance, following in zip(points, hull_successors(points), strict=True):
        order = hull(instance)
        assert [int(following[index]) for index in order] == [*order[1:], order[0]]
        assert (following >= 0).sum() == len(order)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tours_of_few_points_and_of_repeated_points(count):
    found = plan("tsp", np.random.default_rng(count).random((count, 2)))
    assert found.order == list(range(count))
    assert found.certified
    same = plan("tsp", [[1.0, 1.0]] * (count + 12), time_limit=0.2)
    assert (sorted(same.order), same.objective, same.optimality_gap) == (list(range(count + 12)), 0, 0)


@pytest.mark.parametrize(("task", "points", "index"), [
    ("hull", [[0, 0], [1, 1], [2, 2]], None), ("delaunay", [[0, 0], [1, 0]], None),
    ("hull", [[0, 0], [0, 0], [0, 0], [0, 0]], None), ("tsp", [[0, 0], [np.nan, 1]], 1),
    ("tsp", [[0, 0], [1, 1], [np.inf, 1]], 2), ("tsp", [[0, 0], [1e200, 1]], 1), ("tsp", [], None),
    ("tsp", [[1, 2, 3]], None), ("hull", [[0, 0], [1]], None), ("tsp", [["a", "b"]], None),
])  # fmt: skip
def test_points_without_a_plan_are_refused(task, points, index):
    with pytest.raises(InvalidPoints, check=lambda e: (e.index, e.status) == (index, 422)):
        plan(task, points)


@pytest.mark.parametrize(("task", "batch", "told"), [
    ("hull", [[(0, 0), (1, 0), (0, 1)], [(0, 0), (1, 1), (2, 2)]], "Set 1 of the batch: A hull needs"),
    ("tsp", [[(k, k) for k in range(11)], [(0, 0), (float("nan"), 1)]], "Set 1 of the batch: Point 1 is not"),
])  # fmt: skip
def test_a_set_of_a_batch_that_has_no_plan_is_named(task, batch, told):
    request = PlanIn(task=task, batch=batch, time_limit=0.01)
    (error,) = FoveaPlanner(FoveaPlanner.card, None).predict([request], CallContext())
    assert (error.detail[: len(told)], error.field) == (told, "batch")


def test_heuristic_tours_of_a_batch_can_be_stopped_between_sets(monkeypatch):
    run, asked = CallContext(), list[None]()
    monkeypatch.setattr(run, "check", lambda: asked.append(None))
    batch = np.random.default_rng(0).random((3, 8, 2)).tolist()
    request = PlanIn(task="tsp", batch=batch, solver="heuristic", time_limit=0.01)
    FoveaPlanner(FoveaPlanner.card, None).predict([request], run)
    assert len(asked) == 4


def test_who_answers_is_said():
    points = np.random.default_rng(3).random((14, 2))
    asked = plan("tsp", points, solver="pointer", time_limit=0.2)
    assert asked.solver == "heuristic"
    assert "outside of the trained range" in asked.notes[0]
    exact = plan("tsp", points, solver="exact", time_limit=0.2)
    assert (exact.solver, len(exact.notes)) == ("heuristic", 1)
    assert plan("delaunay", points, solver="pointer").notes
    assert plan("hull", points, solver="heuristic").notes
    with pytest.raises(InvalidOption, match="no solver 'lkh'"):
        plan("tsp", points, solver="lkh")  # type: ignore[arg-type]


class Wrong:
    """Proposes something wrong: what is checked must not depend on how good a network is."""

    def decode(self, points, steps, **_):
        slots = np.zeros((len(points), steps), np.int64)
        slots[:, :3] = [1, 2, 3]
        return slots, np.zeros((len(points), steps, points.shape[1] + 1))

    def beam(self, points, width):
        order = np.broadcast_to(np.arange(1, points.shape[1] + 1), (len(points), 1, points.shape[1]))
        return order, np.zeros((len(points), 1))


def test_a_wrong_network_costs_nothing_but_a_note_and_small_tours_are_proven_too():
    wrong = Pointers(Wrong(), Wrong())  # type: ignore[arg-type]
    rng = np.random.default_rng(4)
    sets = [rng.random((8, 2)) for _ in range(5)]
    for points, found in zip(sets, plans("hull", sets, pointers=wrong), strict=True):
        assert found.order == hull(points)
        assert found.solver == "pointer" or "differed" in found.notes[0]
    for points, found in zip(sets, plans("tsp", sets, solver="pointer", pointers=wrong), strict=True):
        best = optimal_tours(points[None])[1][0]
        assert found.solver == "pointer"
        assert found.lower_bound <= best + 1e-9 <= found.objective + 2e-9
        assert found.objective <= 1.2 * best
        assert found.certified == (found.optimality_gap < 1e-9)
    """A learned tour that its bound does not prove gives way to the exact one."""
    sets = [np.random.default_rng(seed).random((9, 2)) for seed in range(8)]
    wrong = Pointers(Wrong(), Wrong())  # type: ignore[arg-type]
    for points, found in zip(sets, plans("tsp", sets, pointers=wrong), strict=True):
        assert found.certified
        assert found.objective == pytest.approx(optimal_tours(points[None])[1][0])


def ready(net: PointerNet) -> PointerInference:
    return PointerInference({key: value.numpy() for key, value in net.state_dict().items()})


@pytest.fixture(scope="module")
def golden():
    return read_golden(GOLDEN / "pointer_net.arrays")


@pytest.fixture(scope="module")
def published():
    keys = read_golden(GOLDEN / "pointer_net.keys.json")
    net: PointerNet = network("pointer-net", keys["config"]["hidden"])

    def drawn(name: str, rule: dict[str, Any]) -> torch.Tensor:
        state = np.random.RandomState((zlib.crc32(name.encode()) + keys["seed"]) % 2**32)
        values = state.standard_normal(rule["shape"]) * rule["scale"] + rule["offset"]
        return torch.from_numpy(values.astype(np.float32))

    net.load_state_dict({name: drawn(name, rule) for name, rule in keys["weights"].items()})
    return net.eval()


def test_logits_likelihoods_and_beam_search_equal_the_golden_ones_greedy_and_exhaustive_at_its_ends(published, golden):
    points, targets = torch.from_numpy(golden["points"]), torch.from_numpy(golden["targets"])
    with torch.no_grad():
        logits = published(points, targets)
    np.testing.assert_allclose(logits, golden["teacher_logits"], atol=2e-5)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(nll.reshape(targets.shape), golden["nll"], atol=2e-5)
    slots, scores = ready(published).beam(golden["points"], 3)
    np.testing.assert_array_equal(slots, golden["beam3_seq"])
    np.testing.assert_allclose(scores, golden["beam3_score"], atol=5e-5)
    points, net = np.random.default_rng(1).random((2, 4, 2), np.float32), ready(published)
    greedy, _ = net.decode(points, 4, visit_once=True)
    np.testing.assert_array_equal(net.beam(points, 1)[0][:, 0], greedy)
    slots, scores = net.beam(points, 100)
    assert slots.shape == (2, 24, 4)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "steps", "once"), [("greedy_free", 10, False), ("greedy_masked", 9, True)])
def test_greedy_decoding_equals_the_golden_one(published, golden, name, steps, once):
    slots, told = ready(published).decode(golden["points"], steps, visit_once=once)
    np.testing.assert_array_equal(slots, golden[name])
    barred = golden[f"{name}_logp"] <= -1e29
    assert (told[barred] == -np.inf).all()
    np.testing.assert_allclose(told[~barred], golden[f"{name}_logp"][~barred], atol=2e-5)


@pytest.fixture(scope="module")
def attentive():
    torch.manual_seed(0)
    net: PointerNet = network("pointer-net", 16, encoder="attn", layers=2)
    return net.eval()


def test_renumbered_points_get_the_renumbered_answer_and_both_encoders_decode_the_order(attentive, published):
    points, order = np.random.default_rng(2).random((3, 7, 2), np.float32), np.array([4, 2, 6, 0, 1, 5, 3])
    slots, _ = ready(attentive).decode(points, 7, visit_once=True)
    again, _ = ready(attentive).decode(points[:, order], 7, visit_once=True)
    np.testing.assert_array_equal(order[again - 1], slots - 1)
    points = np.random.default_rng(3).random((2, 6, 2), np.float32)
    for net in (published, attentive):
        slots, told = ready(net).decode(points, 7)
        with torch.no_grad():
            logits = net(torch.from_numpy(points), torch.from_numpy(slots))
        np.testing.assert_allclose(told, logits.log_softmax(2), atol=2e-5)
        for ours, theirs in (
            (net.decode(torch.from_numpy(points), 6, visit_once=True), ready(net).decode(points, 6, visit_once=True)),
            (net.beam(torch.from_numpy(points), 2), ready(net).beam(points, 2)),
        ):
            for found, wanted in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(found.numpy(), wanted)


def test_an_untrained_hull_is_convex_and_ends_after_three_corners_only(attentive):
    """Right turns are barred, whatever the network thinks."""
    points = np.random.default_rng(0).random((40, 9, 2))
    orders, chances = predict_hulls(ready(attentive), points)
    assert chances.shape == (40, 10)
    for instance, order in zip(points, orders, strict=True):
        if len(order) >= 3:  # a start that leaves no left turn ends at once
            assert valid(instance, order)
            assert area(instance, order) > 0
    assert sum(len(order) >= 3 for order in orders) > 20
    points = np.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    fits, free = left_turn_mask(points), np.ones((1, 5), bool)
    assert not fits(np.array([[1, 2]]), free)[0, 0]
    assert fits(np.array([[1, 2, 3]]), free)[0].tolist() == [True, False, False, False, True]


def test_points_are_framed_without_changing_their_shape_and_other_forms_refused(published):
    points = np.random.default_rng(2).random((4, 5, 2)) * (30, 2) - 7
    assert normalise_points(points, stretch=True).max(1).tolist() == [[1, 1]] * 4
    kept = normalise_points(points, stretch=False)
    ratio = np.linalg.norm(kept[:, 0] - kept[:, 1], axis=1) / np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    np.testing.assert_allclose(ratio, 1 / np.ptp(points, axis=1).max(1), rtol=1e-5)
    assert np.isfinite(normalise_points(np.ones((1, 3, 2)), stretch=True)).all()
    with pytest.raises(InvalidOption, match="points must be"):
        ready(published).decode(np.zeros((2, 5, 3), np.float32), 4)
