"""Gaze: layouts of objects and the attention to them, decoding of fixations, and measures of scanpaths."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from fovea_planning.gaze import object_layout
from fovea_planning.gaze.metrics import behaviour, behaviour_delta, multimatch, nss, sequence_score, similarity
from fovea_planning.gaze.scanpaths import decode_scanpaths
from fovea_planning.models.object_attention import ObjectAttention, grid_cells
from fovea_planning.models.positions import fitted_positions
from services.detection.tests.filling import filled, picture
from shared.registry import network
from tests.golden import read_golden
from tests.harness.hypothesis_profiles import in_depth

GOLDEN = Path(__file__).parent / "golden"


def test_boxes_become_rows_also_slanted_ones():
    boxes = [(50, 103, 90, 150), (0, 0, 40, 50), (0, 100, 40, 150), (50, 4, 90, 52), (100, 98, 140, 149)]
    shelf = object_layout.layout_from_boxes(boxes)
    assert (shelf.layout, shelf.grid, shelf.centres[0].tolist()) == ([[1, 3, None], [2, 0, 4]], (2, 3), [70, 126.5])
    slanted = object_layout.layout_from_boxes([(60 * i, 12 * i, 60 * i + 50, 12 * i + 50) for i in range(6)])
    assert [sum(item is not None for item in row) for row in slanted.layout] == [3, 3]


@given(st.integers(1, 4), st.integers(1, 6), st.randoms())
def test_a_jittered_grid_is_found_again(rows, columns, random):
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    random.shuffle(cells)
    boxes = []
    for row, column in cells:
        x, y = 100 * column + random.uniform(-10, 10), 100 * row + random.uniform(-10, 10)
        boxes.append((x, y, x + 60, y + 60))
    shelf = object_layout.layout_from_boxes(boxes)
    assert (shelf.grid, [cells[item] for item in shelf.ids]) == ((rows, columns), sorted(cells))


def test_crops_lie_inside_their_boxes_and_on_a_grid_a_page_holds_them_and_the_path_is_drawn():
    assert object_layout.layout_from_grid(6, (2, 3), (48, 32)).layout == [[0, 1, 2], [3, 4, 5]]
    for grid in ((2, 2), (0, 6), (3, 3)):
        with pytest.raises(InvalidOption):
            object_layout.layout_from_grid(6, grid, (48, 32))
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[20:60, 30:70] = (255, 0, 0)
    found = object_layout.crop_objects(pixels, [(30, 20, 70, 60), (-20, -20, 20, 20)], (48, 32))
    assert found.shape == (2, 48, 32, 3)
    np.testing.assert_allclose(found[0, 2:-2, 2:-2], np.broadcast_to([1, 0, 0], (44, 28, 3)), atol=1e-6)
    assert not found[1].any()
    crops = np.stack([np.full((4, 2, 3), value, np.float32) for value in (0.0, 0.5, 1.0)])
    page = object_layout.render_layout(crops, object_layout.layout_from_grid(3, (1, 3), (4, 2)))
    assert page[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
    page = np.full((96, 96, 3), 255, np.uint8)
    drawn = object_layout.draw_scanpath(page, [(20, 20), (70, 70), (70, 70)], (70, 70))
    assert min(drawn.shape[:2]) >= 640
    assert (drawn == (214, 40, 57)).all(2).any()
    assert (drawn == (0, 160, 90)).all(2).any()
    assert (page == 255).all()


@pytest.mark.parametrize("box", [(10, 10, 10, 40), (200, 200, 300, 300), (50, 50, 20, 20)])
def test_boxes_without_a_pixel_are_refused(box):
    with pytest.raises(InvalidOption, match="Box 0"):
        object_layout.crop_objects(np.zeros((100, 100, 3), np.uint8), [box], (48, 32))


SHELVES = {"yogurt": (3, 9), "wine": (2, 11), "amazon": (6, 14)}
SMALL: dict[str, Any] = {"grid": (2, 3), "model": 24, "layers": 1, "heads": 2, "feedforward": 16, "crop": (48, 32)}


@pytest.mark.parametrize("shelf", in_depth(SHELVES, ["yogurt"]))
def test_keys_logits_and_greedy_path_equal_the_published_network(shelf):
    keys, golden = (read_golden(GOLDEN / f"oat_{shelf}.{kind}") for kind in ("keys.json", "arrays"))
    grid = SHELVES[shelf]
    net = network("oat", grid=grid, position_table=golden["pe"])
    found = [[key, list(tensor.shape)] for key, tensor in net.state_dict().items()]
    assert found == [row[:2] for row in keys["keys"]]
    assert sum(p.numel() for p in net.parameters()) == keys["n_params"]
    net = filled(net, constant=("pos_embedding",))
    count, target = grid[0] * grid[1], int(golden["target"][0])
    crops = picture(f"oat_{shelf}:crops", (count, 3, 150, 93))
    assert zlib.crc32(crops.permute(0, 2, 3, 1).contiguous().numpy().tobytes()) == golden["crop_crc"][0]
    with torch.no_grad():
        logits = net(crops, target, torch.from_numpy(golden["tokens"][1:]))
    np.testing.assert_allclose(logits.numpy(), golden["logits"], atol=2e-4)
    if shelf != "amazon":  # 84 crops a step take their time
        assert net.scanpath(crops, target) == golden["greedy"].tolist()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    net: ObjectAttention = network("oat", **SMALL)
    return net.eval()


def test_a_network_follows_renumbered_objects_serves_another_grid_and_refuses_other_crops_and_tables(small):
    crops = picture("shelf", (6, 3, 48, 32))
    order, cells = torch.tensor([3, 0, 5, 1, 2, 4]), grid_cells((2, 3))
    place = order.argsort()
    path, target = torch.tensor([1, 4]), 2
    straight = small.logits(crops[None], cells[None], torch.tensor([target]), path[None, None])[0, 0]
    renumbered = small.logits(crops[order][None], cells[order][None], place[target][None], place[path][None, None])
    renumbered = renumbered[0, 0]
    torch.testing.assert_close(renumbered[:, :6], straight[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(renumbered[:, 6:], straight[:, 6:], atol=1e-5, rtol=1e-5)
    crops, nothing = picture("other", (4, 3, 48, 32)), torch.zeros(1, 1, 0, dtype=torch.long)
    assert small.logits(crops[None], grid_cells((2, 2))[None], torch.tensor([3]), nothing).shape == (1, 1, 1, 6)
    with pytest.raises(InvalidOption, match="crops must be"):
        small(torch.zeros(6, 3, 20, 20), 0, torch.zeros(0, dtype=torch.long))
    with pytest.raises(InvalidOption, match="position_table"):
        network("oat", **{**SMALL, "position_table": np.zeros((2, 4))})


def test_fitted_rows_look_alike_when_near_and_an_extended_table_keeps_its_rows():
    given = fitted_positions(6, 22)
    for rows, near in ((fitted_positions(9, 22), 4e-3), (fitted_positions(9, 22, given=given), 1e-2)):
        unit, place = rows / np.linalg.norm(rows, axis=1, keepdims=True), np.arange(9)
        alike = np.exp(-((place[:, None] - place) ** 2) / 8)
        np.testing.assert_allclose(unit @ unit.T, alike, atol=near)  # how far Adam gets depends on the processor
    np.testing.assert_array_equal(rows[:6], given)
    np.testing.assert_array_equal(given, fitted_positions(6, 22))
    assert np.linalg.norm(given, axis=1).std() < 4e-3


def chain(fixations: np.ndarray) -> np.ndarray:
    """After t fixations object t is likeliest; after 3 the end (index 5) is."""
    logits = np.zeros((len(fixations), 7))
    logits[:, 5 if fixations.shape[1] >= 3 else fixations.shape[1]] = 9
    logits[:, 6] = 99  # padding must never win
    return logits


def test_paths_end_where_the_end_is_likeliest_but_not_at_their_first_step_each_for_itself():
    (found,) = decode_scanpaths(chain, 1, 10)
    assert (found.objects, found.ended, found.probabilities.shape) == ([0, 1, 2], True, (3, 6))
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    (found,) = decode_scanpaths(lambda fixations: np.eye(7)[[2] * len(fixations)] * 9, 1, 4)
    assert (found.objects, found.ended) == ([2, 2, 2, 2], False)
    (found,) = decode_scanpaths(lambda fixations: np.eye(7)[[5] * len(fixations)] * 9, 1, 4)
    assert (len(found.objects), found.probabilities[0, 5]) == (1, 0)

    def step(fixations: np.ndarray) -> np.ndarray:
        logits = np.zeros((2, 7))
        logits[0, 5 if fixations.shape[1] == 1 else 1] = 9
        logits[1, 5 if fixations.shape[1] == 3 else 2] = 9
        return logits

    short, long = decode_scanpaths(step, 2, 6)
    assert (short.objects, long.objects) == ([1], [2, 2, 2])


def test_drawn_paths_follow_the_probabilities_and_the_seed():
    def step(fixations: np.ndarray) -> np.ndarray:
        return np.log(np.tile([0.5, 0.3, 0.2, 1e-9, 1e-9, 1e-9, 1], (len(fixations), 1)))

    def draw(seed: int) -> list[list[int]]:
        return [path.objects for path in decode_scanpaths(step, 2000, 1, draw=np.random.default_rng(seed))]

    found = draw(1)
    assert found == draw(1)
    assert found != draw(2)
    assert np.bincount([path[0] for path in found], minlength=3) / 2000 == pytest.approx([0.5, 0.3, 0.2], abs=0.05)


CASES = read_golden(GOLDEN / "oat_metrics.json")["cases"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_measures_equal_the_published_ones(case):
    assert sequence_score(case["pred"], case["gt"]) == pytest.approx(case["ss"], abs=1e-6)
    assert behaviour(case["pred"], case["target"]) == pytest.approx(case["behavior_pred"], abs=1e-6)
    found = multimatch(*case["ab_xy"], screen=(1680, 1050))
    assert found == pytest.approx(case["multimatch_vec_dir_len_pos_dur"], abs=2e-4)


def test_empty_and_short_paths_are_alike_durations_and_deltas_compared_and_saliency_measured():
    assert (sequence_score([], []), sequence_score([], [1]), behaviour([], 0)) == (1, 0, (0, 0, 0, 0, 0))
    for path in ([(0, 0)], [(300, 59), (0, 50), (0, 50), (600, 86)]):
        assert multimatch(path, path) == pytest.approx((1, 1, 1, 1, 1))
    *_, same = multimatch([(0, 0), (9, 9)], [(0, 0), (9, 9)], durations=([2, 2], [2, 2]))
    *_, half = multimatch([(0, 0), (9, 9)], [(0, 0), (9, 9)], durations=([2, 2], [1, 1]))
    assert (same, half) == (1, 0.5)
    true = [(1.0, 4.0, 0.5, 0.5, 0.0)]
    assert behaviour_delta([(0.5, 4.0, 0.5, 0.25, 0.25)], true) == pytest.approx((0.5 + 0 + 0 + 0.5) / 4)
    assert (similarity([0.2, 0.8], 1), nss([0.0, 0.0, 1.0], 2)) == (pytest.approx(0.8), pytest.approx(np.sqrt(2)))
    assert nss([0.5, 0.5], 0) == 0
