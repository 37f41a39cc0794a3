"""Segments of actions: proposals, suppression, and the boundary-matching map."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fovea.errors import InvalidOption
from fovea_actions.segments import proposals
from services.detection.tests.filling import filled, noise, rows
from shared.registry import network
from tests.golden import read_golden

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["bmn_t24_c400", "bmn_t40_c64"])
def test_mask_keys_and_outputs_equal_the_published_network(name):
    golden = read_golden(GOLDEN / f"{name}.arrays")
    mask = proposals.sampling_mask(golden["start"].shape[1])
    for (start, end), column in zip(golden["mask_pairs"], golden["mask_vals"], strict=True):
        np.testing.assert_allclose(mask[:, :, start, end], column, atol=1e-6)
    np.testing.assert_allclose(mask.sum(), golden["mask_sum"][0], rtol=1e-6)
    keys = read_golden(GOLDEN / f"{name}.keys.json")
    net = network("bmn", features=keys["feat_dim"], length=keys["temporal_scale"])
    assert rows(net) == [row[:3] for row in keys["keys"] if row[0] != "sample_mask"]
    shape = (2, keys["feat_dim"], keys["temporal_scale"])
    with torch.no_grad():
        found = filled(net)(noise(f"input:{name}:{'x'.join(map(str, shape))}", shape))
    for tensor, key in zip(found, ("conf", "start", "end"), strict=True):
        np.testing.assert_allclose(tensor.numpy(), golden[key], atol=1e-4)


def test_labels_and_suppression_equal_the_published_ones():
    golden = read_golden(GOLDEN / "bmn_softnms_labels.arrays")
    overlap, start, end = proposals.boundary_labels(golden["gt"], 32)
    np.testing.assert_allclose(overlap, golden["gt_iou_map"], atol=1e-6)
    np.testing.assert_allclose(start, golden["gt_start"], atol=1e-9)
    np.testing.assert_allclose(end, golden["gt_end"], atol=1e-9)
    assert not any(part.any() for part in proposals.boundary_labels(np.empty((0, 2)), 8))
    found = proposals.soft_nms(golden["xmin"], golden["xmax"], golden["score"], *golden["params"])
    for ours, key in zip(found, ("out_xmin", "out_xmax", "out_score"), strict=True):
        np.testing.assert_allclose(ours, golden[key], atol=1e-9)
    starts, ends, scores = np.array([0.1, 0.1]), np.array([0.5, 0.52]), np.array([0.9, 0.8])
    assert (proposals.soft_nms(starts, ends, scores)[0].tolist(), scores.tolist()) == ([0.1], [0.9, 0.8])
    assert all(part.shape == (0,) for part in proposals.soft_nms(np.ones(1), np.ones(1), np.ones(1)))


def test_proposals_multiply_start_end_and_both_confidences_and_get_class_scores():
    length = 6
    confidence = np.full((2, length, length), 0.5)
    starts, ends, scores = proposals.score_proposals(confidence, np.full(length, 0.5), np.full(length, 0.5))
    assert (len(starts), ends.max()) == (length * (length - 1) / 2, pytest.approx(5 / 6))
    assert (starts < ends).all()
    assert np.unique(scores).tolist() == [0.5**4]
    rng = np.random.default_rng(0)
    confidence, start, end = rng.random((2, 5, 5)), rng.random(5), rng.random(5)
    starts, ends, scores = proposals.score_proposals(confidence, start, end)
    place = int(np.flatnonzero((np.isclose(starts, 1 / 5)) & np.isclose(ends, 4 / 5))[0])
    assert scores[place] == pytest.approx(start[1] * end[4] * confidence[0, 1, 3] * confidence[1, 1, 3])
    classes = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0]])
    found = proposals.classify_proposals(np.array([0.25]), np.array([0.75]), np.array([0.8]), classes, best=2)
    assert np.allclose(found, [[0.25, 0.25], [0.75, 0.75], [1, 0], [0.4, 0]])
    starts, ends, scores = np.array([0.0, 0.5]), np.array([0.2, 0.9]), np.array([0.5, 1.0])
    found = proposals.classify_proposals(starts, ends, scores, np.array([0.3, 0.7]), best=1)
    assert np.allclose(found, [[0.5, 0.0], [0.9, 0.2], [1, 1], [0.7, 0.35]])
    large = np.array([[3e38] * 8, [2e38] * 4 + [1.0] * 4], np.float32)
    starts, ends, scores = np.array([0.0, 0.5]), np.array([0.5, 1.0]), np.array([0.5, 0.4])
    found = proposals.classify_proposals(starts, ends, scores, large, best=2)
    assert np.allclose(found[2:], [[0, 0, 1, 1], [1.5e38, 1.2e38, 1e38, 0.4]])


SMALL = {"features": 12, "length": 10, "hidden": (8, 6, 10)}


def test_the_mask_of_samples_is_never_stored_flat_semantics_have_a_gradient_and_other_lengths_are_refused():
    net = network("bmn", **SMALL)
    assert not {"sample_mask", "sampling", "places"} & set(net.state_dict())
    state = {**net.state_dict(), "sample_mask": torch.zeros(10, 3200)}
    net.load_state_dict(state)
    assert "sample_mask" in state  # the caller's own dict stays whole
    holder = nn.ModuleDict({"net": network("bmn", **SMALL)})
    holder.load_state_dict({f"net.{key}": value for key, value in state.items()})
    net = network("bmn-csa", **SMALL, semantics=5)
    r = torch.zeros(1, 5, 10, requires_grad=True)
    net(torch.randn(1, 12, 10), r)[0].sum().backward()
    assert r.grad is not None
    assert r.grad.isfinite().all()
    with pytest.raises(InvalidOption, match=r"x must be \(batch, 12, 10\)"):
        network("bmn", **SMALL)(torch.randn(1, 12, 11))
    with pytest.raises(InvalidOption, match=r"r must be \(batch, 5, 10\)"):
        network("bmn-csa", **SMALL, semantics=5)(torch.randn(1, 12, 10), torch.randn(1, 4, 10))


def test_attention_is_f_plus_weighed_f_or_exactly_bmn():
    plain, off = network("bmn", **SMALL), network("bmn-csa", **SMALL, semantics=5, channel=False, time=False)
    assert list(off.state_dict()) == list(plain.state_dict())
    off.load_state_dict(plain.state_dict())
    x, r = torch.randn(2, 12, 10), torch.randn(2, 5, 10)
    assert all(torch.equal(a, b) for a, b in zip(plain(x), off(x, r), strict=True))
    net = filled(network("bmn-csa", **SMALL, semantics=5))
    seen, r = torch.randn(2, 8, 10), torch.randn(2, 5, 10)
    channel = torch.sigmoid(net.csa.channel(torch.cat((r.mean(2), r.std(2, correction=0), r.amax(2)), 1)))[:, :, None]
    time = torch.sigmoid(net.csa.time(r))
    torch.testing.assert_close(net.csa(seen, r), seen + seen * channel + seen * time)
