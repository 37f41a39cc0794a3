"""HieraEdgeNet against the published modules' behaviour, both forms of its edges, and its filters without an FFT."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from services.detection.layers.edge import EdgeFusion, EdgeModule, SpaceToDepthConv
from services.detection.layers.fourier import filter_spectrum
from services.detection.layers.omni import CSPOmniKernel, FrequencyGate, OmniKernel
from services.detection.models.hieraedgenet_network import HieraEdgeNet, with_transform
from services.detection.tests.filling import checksum, filled, noise, picture, read, rows
from shared.export.onnx_export import export_onnx
from shared.registry import network

CONSTANT = ("dfl.conv.weight", "conv3d.weight")

MODULES = {
    "fgm": (lambda: FrequencyGate(12), 1),
    "sef": (lambda: EdgeFusion([8, 24], 32), 1),
    "omnikernel": (lambda: OmniKernel(16), 4),
    "cspokm": (lambda: CSPOmniKernel(32), 4),
    "spdconv": (lambda: SpaceToDepthConv(8, 16), 1),
    "hem": (lambda: EdgeModule(16, [8, 16, 32], "official"), 1),
}
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


def test_described_edges_equal_the_repaired_module():
    net, golden = filled(EdgeModule(16, [8, 16, 32]), constant=CONSTANT), read("hiera_hem.arrays")
    with torch.no_grad():
        for index, made in enumerate(net(inputs("hiera_hem")[0])):
            np.testing.assert_allclose(made, golden[f"fixed_out{index}"], rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module", params=FORMS)
def published(request):
    stem, form = "hieraedgenet_refA.nc120", FORMS[request.param]
    net = filled(HieraEdgeNet(120, request.param), read(f"{stem}.{form}.bnstats.arrays"), CONSTANT)
    return net, picture(stem, (1, 3, 256, 320)), read(f"{stem}.{form}.256x320.arrays")


def test_layout_is_that_of_the_assumed_wiring():
    keys = read("hieraedgenet_refA.nc120.keys.json")
    net = network("hieraedgenet")
    assert rows(net) == [row[:3] for row in keys["keys"]]
    assert sum(p.numel() for p in net.parameters()) == keys["n_params"]


def test_boxes_and_scores_equal_the_published_modules(published):
    net, x, golden = published
    assert checksum(x) == golden["in_crc"][0]
    with torch.no_grad():
        made = net.predictions(x).numpy()
    np.testing.assert_allclose(made[:, :4], golden["boxes"], rtol=0, atol=0.02)
    np.testing.assert_allclose(made[:, 4:].max(1), golden["cls_max"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(made[:, 4:].mean(1), golden["cls_mean"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(made[..., golden["idx"]], golden["pred_at_idx"], rtol=0, atol=0.02)


def test_official_edges_do_not_see_the_picture_and_described_ones_do():
    a, b = torch.randn(2, 1, 8, 16, 16)
    for edge, seen in (("official", False), ("described", True)):
        module = EdgeModule(8, [4, 4], edge).eval()
        assert [bool((x != y).any()) for x, y in zip(module(a), module(b), strict=True)] == [seen, seen], edge


@given(st.integers(1, 17), st.integers(1, 17), st.integers(0, 99))
def test_filtering_is_the_same_by_fft_by_matrices_and_by_operator(height, width, seed):
    x, weights = torch.randn(2, 2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    wanted = filter_spectrum(x, weights)
    for transform in ("matrices", "dft"):
        torch.testing.assert_close(filter_spectrum(x, weights, transform), wanted, rtol=1e-4, atol=1e-4)


def test_matrices_made_while_serving_take_gradients_later():
    x, weights = torch.randn(1, 2, 23, 29), torch.randn(1, 2, 23, 29)  # sizes of their own: the matrices are made here
    with torch.inference_mode():
        filter_spectrum(x, weights, "matrices")
    x.requires_grad_()
    filter_spectrum(x, weights, "matrices").sum().backward()
    assert x.grad.isfinite().all()


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


def test_a_bad_size_is_named():
    net = HieraEdgeNet(8, "described").eval()
    with pytest.raises(InvalidOption, match="multiples of 32, got 64x90"):
        net(torch.zeros(1, 3, 64, 90))
