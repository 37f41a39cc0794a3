"""PATNet and FasterNet against the published models' behaviour, and what they promise."""

import math

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from services.detection.layers.partial import drop_path
from services.detection.layers.visual_attention import ChannelGate
from services.detection.models.fasternet_network import FasterNet
from services.detection.models.patnet_network import PATNet
from services.detection.tests.filling import checksum, filled, picture, read, rows

PUBLISHED = {
    "partialnet_t0": lambda: PATNet("t0"),
    "partialnet_t2.sp_h6": lambda: PATNet("t2", spatial=True, heads=6),
    "fasternet_t0": lambda: FasterNet("t0"),
}

PARAMETERS = {
    "t0": (3.486, 3.558), "t1": (5.986, 6.145), "t2": (12.270, 12.650), "s": (28.01, 28.98), "m": (59.18, 61.37),
    "l": (100.64, 104.47),
}  # fmt: skip
"""Millions, without and with the spatial gate."""


@pytest.fixture(
    scope="module",
    params=[("partialnet_t0", "2x224x224"), ("partialnet_t2.sp_h6", "1x160x256"), ("fasternet_t0", "1x160x256")],
    ids=lambda pair: pair[0],
)
def published(request):
    stem, size = request.param
    net = filled(PUBLISHED[stem](), read(f"{stem}.bnstats.arrays"))
    n, h, w = map(int, size.split("x"))
    return net, picture(stem, (n, 3, h, w)), read(f"{stem}.{size}.arrays")


@pytest.mark.parametrize("stem", PUBLISHED)
def test_state_dict_has_the_official_names_order_shapes_and_types(stem):
    keys = read(f"{stem}.keys.json")
    net = PUBLISHED[stem]()
    assert rows(net) == [row[:3] for row in keys["keys"]]
    assert sum(p.numel() for p in net.parameters()) == keys["n_params"]


def test_logits_and_stages_equal_the_published_models(published):
    net, x, golden = published
    assert checksum(x) == golden["in_crc"][0]
    with torch.no_grad():
        np.testing.assert_allclose(net(x).numpy(), golden["logits"], rtol=0, atol=1e-3)
        x = net.patch_embed(x)
        for index, stage in enumerate(net.stages):
            x = stage(x)
            np.testing.assert_allclose(x.mean((0, 2, 3)).numpy(), golden[f"stage{index}_mean"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(x[0].numpy(), golden["last_stage"][0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "counts"), PARAMETERS.items())
def test_every_size_has_the_published_parameters(size, counts):
    with torch.device("meta"):
        found = [sum(p.numel() for p in PATNet(size, spatial=s).parameters()) / 1e6 for s in (False, True)]
        default = sum(p.numel() for p in PATNet(size).parameters()) / 1e6
    assert found == pytest.approx(counts, abs=0.005)
    assert default == found[size == "t1"]  # only T1 was published with the gate


@pytest.mark.parametrize(("size", "count"), [("t0", 3.905), ("t1", 7.595), ("t2", 14.983), ("s", 31.181)])
def test_every_size_of_the_baseline_has_the_published_parameters(size, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in FasterNet(size).parameters()) / 1e6 == pytest.approx(count, abs=0.001)


@pytest.mark.parametrize("make", [PATNet, FasterNet])
def test_features_are_four_normalised_maps_of_the_stages(make):
    torch.manual_seed(0)
    net, x = make("t0", features=True).eval(), torch.randn(2, 3, 64, 96)
    plain = make("t0").eval()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("norm")}, strict=False)
    with torch.no_grad():
        maps, raw = net(x), plain.maps(x)
    width = net.patch_embed.proj.out_channels
    assert [tuple(m.shape) for m in maps] == [(2, width << s, 16 >> s, 24 >> s) for s in range(4)]
    for found, stage in zip(maps, raw, strict=True):
        torch.testing.assert_close(found, stage / math.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)
    assert not any(key.startswith(("head", "avgpool")) for key in net.state_dict())


def test_a_size_that_does_not_fit_the_stages_is_named():
    with pytest.raises(InvalidOption, match="multiples of 32, got 96x100") as caught:
        FasterNet("t0")(torch.zeros(1, 3, 96, 100))
    assert caught.value.field == "x"


def test_a_flat_channel_has_a_finite_gradient():
    gate, x = ChannelGate(2), torch.ones(1, 2, 4, 4, requires_grad=True)
    gate.eval()(x).sum().backward()
    assert x.grad.isfinite().all()


def test_dropped_samples_vanish_whole_and_the_mean_stays():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 1, 1)
    y = drop_path(x, 0.25, training=True)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert drop_path(x, 0.25, training=False) is x
    assert drop_path(x, 0.0, training=True) is x


def test_a_network_that_was_served_can_be_trained_on_afterwards():
    net, x = PATNet("t0", classes=2), torch.randn(2, 3, 96, 224)  # a size of its own: its table is built here
    with torch.inference_mode():
        net.eval()(x)
    net.train()(x).sum().backward()
    assert net.head.weight.grad is not None
