"""Networks of this service against the published ones: PATNet and FasterNet, HieraEdgeNet, YOLO9tr."""

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fovea.errors import InvalidOption
from services.detection.boxes.geometry import decode
from services.detection.layers import fuse_batch_norms
from services.detection.layers.edge import EdgeFusion, EdgeModule, SpaceToDepthConv
from services.detection.layers.fourier import filter_spectrum
from services.detection.layers.omni import CSPOmniKernel, FrequencyGate, OmniKernel
from services.detection.layers.partial import drop_path
from services.detection.layers.visual_attention import ChannelGate
from services.detection.models.fasternet_network import FasterNet
from services.detection.models.hieraedgenet_network import HieraEdgeNet, with_transform
from services.detection.models.patnet_network import PATNet
from services.detection.tests.filling import checksum, filled, noise, picture, read, rows
from shared.export.onnx_export import export_onnx
from shared.registry import network
from tests.harness.hypothesis_profiles import in_depth

PUBLISHED = {
    "partialnet_t0": (lambda: PATNet("t0"), (2, 224, 224)), "fasternet_t0": (lambda: FasterNet("t0"), (1, 160, 256)),
    "partialnet_t2.sp_h6": (lambda: PATNet("t2", spatial=True, heads=6), (1, 160, 256)),
}  # fmt: skip
"""How to build each network, and the number and size of its golden pictures."""


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    stem, (make, (n, h, w)) = request.param, PUBLISHED[request.param]
    net = filled(make(), read(f"{stem}.bnstats.arrays"))
    return net, picture(stem, (n, 3, h, w)), read(f"{stem}.{n}x{h}x{w}.arrays")


@pytest.mark.parametrize("stem", [*PUBLISHED, "hieraedgenet_refA.nc120"])
def test_state_dict_has_the_official_names_order_shapes_and_types(stem):
    keys, net = read(f"{stem}.keys.json"), PUBLISHED[stem][0]() if stem in PUBLISHED else network("hieraedgenet")
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


def test_sizes_that_do_not_fit_are_named_and_flat_channels_have_finite_gradients():
    yolo = network("yolo9tr", classes=1, width=0.0625).eval()
    hiera = HieraEdgeNet(8, "described").eval()
    for net, height, width in ((FasterNet("t0"), 96, 100), (hiera, 64, 90), (yolo, 40, 64)):
        with pytest.raises(InvalidOption, match=f"multiples of 32, got {height}x{width}") as caught:
            net(torch.zeros(1, 3, height, width))
        assert caught.value.field == "x"
    with pytest.raises(InvalidOption, match="splits channels"):
        network("yolo9tr", width=0.3)
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


def test_what_was_served_can_be_trained_on_afterwards():
    net, x = PATNet("t0", classes=2), torch.randn(2, 3, 96, 224)  # a size of its own: its table is built here
    with torch.inference_mode():
        net.eval()(x)
    net.train()(x).sum().backward()
    assert net.head.weight.grad is not None
    x, weights = torch.randn(1, 2, 23, 29), torch.randn(1, 2, 23, 29)  # sizes of their own: the matrices are made here
    with torch.inference_mode():
        filter_spectrum(x, weights, "matrices")
    x.requires_grad_()
    filter_spectrum(x, weights, "matrices").sum().backward()
    assert x.grad.isfinite().all()


CONSTANT = ("dfl.conv.weight", "conv3d.weight")


MODULES = {
    "fgm": (lambda: FrequencyGate(12), 1), "sef": (lambda: EdgeFusion([8, 24], 32), 1),
    "omnikernel": (lambda: OmniKernel(16), 4), "cspokm": (lambda: CSPOmniKernel(32), 4),
    "spdconv": (lambda: SpaceToDepthConv(8, 16), 1), "hem": (lambda: EdgeModule(16, [8, 16, 32], "official"), 1),
}  # fmt: skip
"""How to build each module alone, and how far apart the golden pixels are."""

FORMS = {"official": "official", "described": "fixed"}
"""Our name of the edges → the golden files'."""


def inputs(stem):
    shapes = read(f"{stem}.keys.json")["input_shapes"]
    return [noise(f"input:{stem}:{i}:{'x'.join(map(str, shape))}", tuple(shape)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("name", MODULES)
def test_modules_alone_equal_the_published_ones(name):
    make, step = MODULES[name]
    net, stem = make(), f"hiera_{name}"
    assert rows(net) == [row[:3] for row in read(f"{stem}.keys.json")["keys"]]
    filled(net, constant=CONSTANT)
    golden = read(f"{stem}.arrays" if step == 1 else f"{stem}.strided4.arrays")
    with torch.no_grad():
        found = net(inputs(stem) if name == "sef" else inputs(stem)[0])
    for index, made in enumerate(found if isinstance(found, list) else [found]):
        np.testing.assert_allclose(made[..., ::step, ::step], golden[f"out{index}"], rtol=1e-4, atol=1e-3)


def test_edges_are_those_of_the_repaired_module():
    net, golden = filled(EdgeModule(16, [8, 16, 32]), constant=CONSTANT), read("hiera_hem.arrays")
    with torch.no_grad():
        for index, made in enumerate(net(inputs("hiera_hem")[0])):
            np.testing.assert_allclose(made, golden[f"fixed_out{index}"], rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module", params=FORMS)
def hiera(request):
    stem, form = "hieraedgenet_refA.nc120", FORMS[request.param]
    net = filled(HieraEdgeNet(120, request.param), read(f"{stem}.{form}.bnstats.arrays"), CONSTANT)
    return net, picture(stem, (1, 3, 256, 320)), read(f"{stem}.{form}.256x320.arrays")


def test_boxes_and_scores_equal_the_published_modules(hiera):
    net, x, golden = hiera
    assert checksum(x) == golden["in_crc"][0]
    with torch.no_grad():
        made = net.predictions(x).numpy()
    np.testing.assert_allclose(made[:, :4], golden["boxes"], rtol=0, atol=0.02)
    np.testing.assert_allclose(made[:, 4:].max(1), golden["cls_max"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(made[:, 4:].mean(1), golden["cls_mean"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(made[..., golden["idx"]], golden["pred_at_idx"], rtol=0, atol=0.02)


@given(st.integers(1, 17), st.integers(1, 17), st.integers(0, 99))
def test_filtering_is_the_same_by_fft_by_matrices_and_by_operator(height, width, seed):
    x, weights = torch.randn(2, 2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    wanted = filter_spectrum(x, weights)
    for transform in ("matrices", "dft"):
        torch.testing.assert_close(filter_spectrum(x, weights, transform), wanted, rtol=1e-4, atol=1e-4)


def test_exported_graph_has_no_transform_operator_unless_it_is_asked_for(tmp_path):
    net, x = filled(CSPOmniKernel(16)), torch.randn(1, 16, 24, 16)
    for transform, expected in (("matrices", False), ("dft", True)):
        path = tmp_path / f"{transform}.onnx"
        parity = export_onnx(with_transform(net, transform), path, {"x": x}, ["y"])
        assert parity.max_difference < 1e-5 * parity.max_value
        assert any(node.op_type == "DFT" for node in onnx.load(path).graph.node) == expected


def test_training_by_fft_gives_the_same_map_and_the_same_gradients():
    torch.manual_seed(0)
    net, x = OmniKernel(3), torch.randn(2, 3, 20, 12)
    found = {}
    for mode in (True, False):
        net.train(mode).zero_grad()
        made = net.large(x)
        made.square().sum().backward()
        found[mode] = [made.detach(), *(getattr(net, f"dw_{k}").weight.grad.clone() for k in (13, 31, 33, 11))]
    for fast, plain in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


STEM = {"s": "yolov9tr.nc7", "l": "yolov9tr-l.nc7"}


@pytest.fixture(scope="module", params=in_depth(STEM, ["s"]))
def official(request):
    size, golden = request.param, read(f"yolo9tr-{request.param}.arrays")
    statistics = {key.removeprefix("bn:"): value for key, value in golden.items() if key.startswith("bn:")}
    net = filled(network("yolo9tr", classes=7, size=size), statistics, (".dfl.conv.weight", ".dfl2.conv.weight"))
    return size, net, golden, picture(STEM[size], (1, 3, 256, 320))


@torch.no_grad()
def test_keys_and_maps_equal_the_published_ones_and_the_served_branch_gives_their_boxes(official):
    size, net, golden, x = official
    names = [f"{key} {'x'.join(map(str, value.shape))}" for key, value in net.state_dict().items()]
    assert names == golden["keys"].tolist()
    assert checksum(x) == golden["in_crc"][0]
    for branch, maps in zip(("main", "aux"), net(x), strict=True):
        for level, found in enumerate(maps):
            np.testing.assert_allclose(found[..., ::3, ::3].numpy(), golden[f"raw_{branch}_{level}"], atol=5e-4)
        _same_boxes(decode(maps, 7), golden[branch])
    pruned = network("yolo9tr", classes=7, size=size, branch="main").eval()
    kept = pruned.state_dict().keys()
    pruned.load_state_dict({key: value for key, value in net.state_dict().items() if key in kept})
    assert torch.equal(pruned(x)[0][0], net(x)[0][0])
    assert pruned(x)[1] is None
    fused = fuse_batch_norms(pruned)
    _same_boxes(fused.predictions(x), golden["main"])
    assert torch.allclose(fuse_batch_norms(fused).predictions(x), fused.predictions(x))
    assert [any(isinstance(m, nn.BatchNorm2d) for m in one.modules()) for one in (fused, pruned)] == [False, True]


def _same_boxes(found: torch.Tensor, golden: np.ndarray) -> None:
    np.testing.assert_allclose(found[:, :4, ::7].numpy(), golden[:, :4], atol=0.02)
    np.testing.assert_allclose(found[:, 4:, ::7].numpy(), golden[:, 4:], atol=1e-4)
