"""OAT against its golden data, and the properties that its form promises."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from services.detection.layers.positions import fitted_positions
from services.detection.models.object_attention import ObjectAttention, grid_cells
from services.detection.tests.filling import filled, picture, read
from shared.registry import network

SHELVES = {"yogurt": (3, 9), "wine": (2, 11), "amazon": (6, 14)}
SMALL: dict[str, Any] = {"grid": (2, 3), "model": 24, "layers": 1, "heads": 2, "feedforward": 16, "crop": (48, 32)}


@pytest.mark.parametrize(
    "shelf", ["yogurt", *(pytest.param(name, marks=pytest.mark.release) for name in ("wine", "amazon"))]
)
def test_keys_logits_and_greedy_path_equal_the_published_network(shelf):
    keys, golden, grid = read(f"oat_{shelf}.keys.json"), read(f"oat_{shelf}.arrays"), SHELVES[shelf]
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


@pytest.fixture(scope="module")
def crops():
    return picture("shelf", (6, 3, 48, 32))


def test_later_fixations_do_not_change_earlier_logits(small, crops):
    one, other = small(crops, 2, torch.tensor([1, 4, 5])), small(crops, 2, torch.tensor([1, 4, 0]))
    torch.testing.assert_close(one[:3], other[:3])
    assert (one[3] - other[3]).abs().max() > 1e-6


def test_objects_renumbered_with_their_places_have_their_logits_renumbered(small, crops):
    order, cells = torch.tensor([3, 0, 5, 1, 2, 4]), grid_cells((2, 3))
    place = order.argsort()
    path, target = torch.tensor([1, 4]), 2
    straight = small.logits(crops[None], cells[None], torch.tensor([target]), path[None, None])[0, 0]
    renumbered = small.logits(crops[order][None], cells[order][None], place[target][None], place[path][None, None])[
        0, 0
    ]
    torch.testing.assert_close(renumbered[:, :6], straight[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(renumbered[:, 6:], straight[:, 6:], atol=1e-5, rtol=1e-5)


def test_a_trained_network_serves_another_grid(small):
    found = small.logits(
        picture("other", (4, 3, 48, 32))[None],
        grid_cells((2, 2))[None],
        torch.tensor([3]),
        torch.zeros(1, 1, 0, dtype=torch.long),
    )
    assert found.shape == (1, 1, 1, 6)


def test_the_first_step_of_a_path_never_ends_it(small, crops):
    path = small.scanpath(crops, 0, steps=4)
    assert path[0] < 6
    assert len(path) <= 4
    assert 6 not in path[:-1]


def test_crops_of_another_size_and_short_tables_are_refused(small):
    with pytest.raises(InvalidOption, match="crops must be"):
        small(torch.zeros(6, 3, 20, 20), 0, torch.zeros(0, dtype=torch.long))
    with pytest.raises(InvalidOption, match="position_table"):
        network("oat", **{**SMALL, "position_table": np.zeros((2, 4))})


def test_fitted_rows_look_alike_when_near():
    rows = fitted_positions(9, 22)
    unit, place = rows / np.linalg.norm(rows, axis=1, keepdims=True), np.arange(9)
    np.testing.assert_allclose(
        unit @ unit.T, np.exp(-((place[:, None] - place) ** 2) / 8), atol=4e-3
    )  # how far Adam gets depends on the processor
    assert np.linalg.norm(rows, axis=1).std() < 4e-3
    np.testing.assert_array_equal(rows, fitted_positions(9, 22))


def test_a_table_is_extended_and_keeps_the_rows_it_has():
    given = fitted_positions(6, 22)
    rows = fitted_positions(9, 22, given=given)
    np.testing.assert_array_equal(rows[:6], given)
    unit, place = rows / np.linalg.norm(rows, axis=1, keepdims=True), np.arange(9)
    np.testing.assert_allclose(unit @ unit.T, np.exp(-((place[:, None] - place) ** 2) / 8), atol=1e-2)
