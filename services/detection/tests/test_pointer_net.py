"""Pointer networks: the 2015 form against its golden data, and the properties of both forms."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from services.detection.models.pointer_net import PointerNet
from services.detection.planning.pointer_inference import PointerInference
from services.detection.planning.pointer_solver import left_turn_mask, normalise_points, predict_hulls
from services.detection.tests.filling import read
from shared.registry import network


def ready(net: PointerNet) -> PointerInference:
    return PointerInference({key: value.numpy() for key, value in net.state_dict().items()})


@pytest.fixture(scope="module")
def golden():
    return read("pointer_net.arrays")


@pytest.fixture(scope="module")
def published():
    keys = read("pointer_net.keys.json")
    net: PointerNet = network("pointer-net", keys["config"]["hidden"])

    def drawn(name: str, rule: dict[str, Any]) -> torch.Tensor:
        state = np.random.RandomState((zlib.crc32(name.encode()) + keys["seed"]) % 2**32)
        values = state.standard_normal(rule["shape"]) * rule["scale"] + rule["offset"]
        return torch.from_numpy(values.astype(np.float32))

    net.load_state_dict({name: drawn(name, rule) for name, rule in keys["weights"].items()})
    return net.eval()


def test_teacher_forced_logits_and_likelihoods_equal_the_golden_ones(published, golden):
    points, targets = torch.from_numpy(golden["points"]), torch.from_numpy(golden["targets"])
    with torch.no_grad():
        logits = published(points, targets)
    np.testing.assert_allclose(logits, golden["teacher_logits"], atol=2e-5)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(nll.reshape(targets.shape), golden["nll"], atol=2e-5)


@pytest.mark.parametrize(("name", "steps", "once"), [("greedy_free", 10, False), ("greedy_masked", 9, True)])
def test_greedy_decoding_equals_the_golden_one(published, golden, name, steps, once):
    slots, told = ready(published).decode(golden["points"], steps, visit_once=once)
    np.testing.assert_array_equal(slots, golden[name])
    barred = golden[f"{name}_logp"] <= -1e29
    assert (told[barred] == -np.inf).all()
    np.testing.assert_allclose(told[~barred], golden[f"{name}_logp"][~barred], atol=2e-5)


def test_beam_search_equals_the_golden_one(published, golden):
    slots, scores = ready(published).beam(golden["points"], 3)
    np.testing.assert_array_equal(slots, golden["beam3_seq"])
    np.testing.assert_allclose(scores, golden["beam3_score"], atol=5e-5)


def test_a_beam_of_one_is_greedy_and_a_wide_one_holds_every_order(published):
    points, net = np.random.default_rng(1).random((2, 4, 2), np.float32), ready(published)
    greedy, _ = net.decode(points, 4, visit_once=True)
    np.testing.assert_array_equal(net.beam(points, 1)[0][:, 0], greedy)
    slots, scores = net.beam(points, 100)
    assert slots.shape == (2, 24, 4)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def attentive():
    torch.manual_seed(0)
    net: PointerNet = network("pointer-net", 16, encoder="attn", layers=2)
    return net.eval()


def test_renumbered_points_get_the_renumbered_answer(attentive):
    points, order = np.random.default_rng(2).random((3, 7, 2), np.float32), np.array([4, 2, 6, 0, 1, 5, 3])
    slots, _ = ready(attentive).decode(points, 7, visit_once=True)
    again, _ = ready(attentive).decode(points[:, order], 7, visit_once=True)
    np.testing.assert_array_equal(order[again - 1], slots - 1)


def test_both_encoders_decode_what_the_network_says_of_the_order(published, attentive):
    points = np.random.default_rng(3).random((2, 6, 2), np.float32)
    for net in (published, attentive):
        slots, told = ready(net).decode(points, 7)
        with torch.no_grad():
            logits = net(torch.from_numpy(points), torch.from_numpy(slots))
        np.testing.assert_allclose(told, logits.log_softmax(2), atol=2e-5)


def test_an_untrained_hull_is_convex_all_the_same(attentive):
    """Right turns are barred, whatever the network thinks."""
    from services.detection.planning.geometry import area, polygon_is_valid

    points = np.random.default_rng(0).random((40, 9, 2))
    orders, chances = predict_hulls(ready(attentive), points)
    assert chances.shape == (40, 10)
    for instance, order in zip(points, orders, strict=True):
        if len(order) >= 3:  # a start that leaves no left turn ends at once
            assert polygon_is_valid(instance, order)
            assert area(instance, order) > 0
    assert sum(len(order) >= 3 for order in orders) > 20


def test_the_end_is_allowed_after_three_corners_only():
    points = np.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    fits, free = left_turn_mask(points), np.ones((1, 5), bool)
    assert not fits(np.array([[1, 2]]), free)[0, 0]
    assert fits(np.array([[1, 2, 3]]), free)[0].tolist() == [True, False, False, False, True]


def test_points_are_framed_without_changing_their_shape():
    points = np.random.default_rng(2).random((4, 5, 2)) * (30, 2) - 7
    assert normalise_points(points, stretch=True).max(1).tolist() == [[1, 1]] * 4
    kept = normalise_points(points, stretch=False)
    ratio = np.linalg.norm(kept[:, 0] - kept[:, 1], axis=1) / np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    np.testing.assert_allclose(ratio, 1 / np.ptp(points, axis=1).max(1), rtol=1e-5)
    assert np.isfinite(normalise_points(np.ones((1, 3, 2)), stretch=True)).all()


def test_points_of_another_form_are_refused(published):
    with pytest.raises(InvalidOption, match="points must be"):
        ready(published).decode(np.zeros((2, 5, 3), np.float32), 4)
