"""BMN against its golden data, and what class-semantics attention adds to it."""

import numpy as np
import pytest
import torch
from torch import nn

from fovea.errors import InvalidOption
from services.detection.segments.proposals import sampling_mask
from services.detection.tests.filling import filled, noise, read, rows
from shared.registry import network

SMALL = {"features": 12, "length": 10, "hidden": (8, 6, 10)}


@pytest.mark.parametrize("name", ["bmn_t24_c400", "bmn_t40_c64"])
def test_keys_and_outputs_equal_the_published_network(name):
    keys, golden = read(f"{name}.keys.json"), read(f"{name}.arrays")
    net = network("bmn", features=keys["feat_dim"], length=keys["temporal_scale"])
    assert rows(net) == [row[:3] for row in keys["keys"] if row[0] != "sample_mask"]
    shape = (2, keys["feat_dim"], keys["temporal_scale"])
    with torch.no_grad():
        found = filled(net)(noise(f"input:{name}:{'x'.join(map(str, shape))}", shape))
    for tensor, key in zip(found, ("conf", "start", "end"), strict=True):
        np.testing.assert_allclose(tensor.numpy(), golden[key], atol=1e-4)


def test_matching_equals_sampling_before_the_convolution_as_published():
    net = filled(network("bmn", **SMALL))
    seen = torch.randn(2, 8, 10)
    mask = torch.from_numpy(sampling_mask(10)).reshape(10, -1)
    published = net.x_3d_p((seen @ mask).reshape(2, 8, 32, 10, 10))[:, :, 0]
    torch.testing.assert_close(net._matched(seen), published, atol=1e-5, rtol=1e-5)


def test_the_sampling_mask_is_never_stored_and_ignored_where_a_checkpoint_has_it():
    net = network("bmn", **SMALL)
    assert not {"sample_mask", "sampling", "places"} & set(net.state_dict())
    state = {**net.state_dict(), "sample_mask": torch.zeros(10, 3200)}
    net.load_state_dict(state)
    assert "sample_mask" in state  # the caller's own dict stays whole
    holder = nn.ModuleDict({"net": network("bmn", **SMALL)})
    holder.load_state_dict({f"net.{key}": value for key, value in state.items()})


def test_attention_switched_off_is_exactly_bmn():
    plain, off = network("bmn", **SMALL), network("bmn-csa", **SMALL, semantics=5, channel=False, time=False)
    assert list(off.state_dict()) == list(plain.state_dict())
    off.load_state_dict(plain.state_dict())
    x, r = torch.randn(2, 12, 10), torch.randn(2, 5, 10)
    assert all(torch.equal(a, b) for a, b in zip(plain(x), off(x, r), strict=True))


def test_attention_is_f_plus_weighed_f():
    net = filled(network("bmn-csa", **SMALL, semantics=5))
    seen, r = torch.randn(2, 8, 10), torch.randn(2, 5, 10)
    pooled = torch.cat((r.mean(2), r.std(2, correction=0), r.amax(2)), 1)
    channel = torch.sigmoid(net.csa.channel(pooled))[:, :, None]
    time = torch.sigmoid(net.csa.time(r))
    torch.testing.assert_close(net.csa(seen, r), seen + seen * channel + seen * time)


def test_flat_semantics_have_a_finite_gradient():
    net = network("bmn-csa", **SMALL, semantics=5)
    r = torch.zeros(1, 5, 10, requires_grad=True)
    net(torch.randn(1, 12, 10), r)[0].sum().backward()
    assert r.grad is not None
    assert r.grad.isfinite().all()


def test_features_of_another_length_are_refused():
    with pytest.raises(InvalidOption, match=r"x must be \(batch, 12, 10\)"):
        network("bmn", **SMALL)(torch.randn(1, 12, 11))
    with pytest.raises(InvalidOption, match=r"r must be \(batch, 5, 10\)"):
        network("bmn-csa", **SMALL, semantics=5)(torch.randn(1, 12, 10), torch.randn(1, 4, 10))
