"""Plans: equal to the golden ones, proven, bounded, and refused where there is nothing to plan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detection.planning import InvalidPoints, plan, plans
from services.detection.planning.exact import optimal_tours, tour_lengths
from services.detection.planning.geometry import area, hull, hull_successors
from services.detection.planning.geometry import polygon_is_valid as valid
from services.detection.planning.heuristic import improve_tour
from services.detection.planning.lower_bound import tour_bound
from services.detection.tests.filling import read

LABELS = read("combinatorial_labels.arrays")


@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_hulls_equal_the_golden_ones(n):
    for points, order, size in zip(*(LABELS[f"hull{n}_{k}"] for k in ("points", "seq", "area")), strict=True):
        found = plan("hull", points)
        assert found.order == [index for index in order.tolist() if index >= 0]
        assert found.objective == pytest.approx(size)
        assert found.certified


def test_the_area_of_a_small_polygon_far_from_the_origin_does_not_drown():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * 1e-3 + [1000, -1000]
    assert area(square, range(4)) == pytest.approx(1e-6, rel=1e-7)
    assert area(square, range(3, -1, -1)) < 0


@pytest.mark.parametrize("n", [5, 10, 50])
def test_triangles_equal_the_golden_ones(n):
    for points, corners in zip(LABELS[f"del{n}_points"], LABELS[f"del{n}_triangles"], strict=True):
        found = plan("delaunay", points)
        assert found.triangles == [tuple(row) for row in corners.tolist() if row[0] >= 0]
        assert found.certified


@pytest.mark.parametrize("n", [5, 8, 10])
def test_small_tours_equal_the_optimum_and_are_certified(n):
    for points, order, length in zip(*(LABELS[f"tsp{n}_{k}"] for k in ("points", "opt_tour", "opt_len")), strict=True):
        found = plan("tsp", points)
        assert (found.order, found.objective) == (order.tolist(), pytest.approx(length))
        assert (found.certified, found.optimality_gap, found.solver) == (True, 0, "exact")


@pytest.mark.timed("how near a tour comes depends on how far half a second of the processor goes")
@pytest.mark.parametrize("n", [20, 50])
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


def test_points_on_an_edge_are_no_corners_and_far_places_lose_nothing():
    square = [[0, 0], [1, 0], [2, 0], [2, 2], [0, 2], [1, 1]]
    assert plan("hull", square).order == [0, 2, 3, 4]
    moved = np.array(square) + 1e6
    assert plan("hull", moved).order == [0, 2, 3, 4]
    assert plan("hull", moved).objective == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tours_of_few_points_and_of_repeated_points(count):
    found = plan("tsp", np.random.default_rng(count).random((count, 2)))
    assert found.order == list(range(count))
    assert found.certified
    same = plan("tsp", [[1.0, 1.0]] * (count + 12), time_limit=0.2)
    assert sorted(same.order) == list(range(count + 12))
    assert (same.objective, same.optimality_gap) == (0, 0)


@pytest.mark.parametrize(
    ("task", "points", "index"),
    [
        ("hull", [[0, 0], [1, 1], [2, 2]], None),
        ("delaunay", [[0, 0], [1, 0]], None),
        ("hull", [[0, 0], [0, 0], [0, 0], [0, 0]], None),
        ("tsp", [[0, 0], [np.nan, 1]], 1),
        ("tsp", [[0, 0], [1, 1], [np.inf, 1]], 2),
        ("tsp", [[0, 0], [1e200, 1]], 1),
        ("tsp", [], None),
        ("tsp", [[1, 2, 3]], None),
    ],
)
def test_points_without_a_plan_are_refused(task, points, index):
    with pytest.raises(InvalidPoints) as caught:
        plan(task, points)
    assert (caught.value.index, caught.value.status) == (index, 422)


def test_who_answers_is_said():
    points = np.random.default_rng(3).random((14, 2))
    asked = plan("tsp", points, solver="pointer", time_limit=0.2)
    assert asked.solver == "heuristic"
    assert "outside of the trained range" in asked.notes[0]
    exact = plan("tsp", points, solver="exact", time_limit=0.2)
    assert (exact.solver, len(exact.notes)) == ("heuristic", 1)
    assert plan("delaunay", points, solver="pointer").notes


class Wrong:
    """Proposes something wrong: what is checked must not depend on how good a network is."""

    def decode(self, points, steps, **_):
        slots = np.zeros((len(points), steps), np.int64)
        slots[:, :3] = [1, 2, 3]
        return slots, np.zeros((len(points), steps, points.shape[1] + 1))

    def beam(self, points, width):
        order = np.broadcast_to(np.arange(1, points.shape[1] + 1), (len(points), 1, points.shape[1]))
        return order, np.zeros((len(points), 1))


def test_a_wrong_network_costs_nothing_but_a_note():
    from services.detection.planning import Pointers

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


def test_polygons_that_cross_themselves_are_told():
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert valid(square, [0, 1, 2, 3])
    assert not valid(square, [0, 2, 1, 3])
    assert not valid(square, [0, 1])
    assert not valid(square, [0, 1, 1])
    assert area(square, [0, 3, 2, 1]) == -1
