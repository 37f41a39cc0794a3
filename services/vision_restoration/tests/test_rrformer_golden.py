"""RRFormer, its tower and its discriminator against the published models' behaviour: layout, outputs, losses."""

import zlib

import numpy as np
import pytest
import torch

from services.vision_restoration import losses
from shared.registry import network

KEYS = {
    "rrformer": "rrformer.keys.json",
    "vgg19-features": "rrformer.vgg19_features.keys.json",
    "rrformer-discriminator": "rrformer.netD.keys.json",
}


@pytest.fixture(scope="module")
def tower(fill):
    return fill(network("vgg19-features"), "vgg:")


@pytest.fixture(scope="module")
def rrformer(fill):
    return fill(network("rrformer"))


@pytest.fixture(scope="module")
def critic(fill):
    return fill(network("rrformer-discriminator"), "netD:")


@pytest.mark.parametrize("name", KEYS)
def test_state_dict_has_the_official_names_order_shapes_and_types(golden, name):
    state = network(name).state_dict()
    rows = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()]
    assert rows == golden(KEYS[name])


@pytest.mark.parametrize("size", [(96, 160), (70, 104)])
def test_both_variants_equal_the_published_models(golden, rrformer, tower, picture, size):
    expected, x = golden(f"rrformer_1x3x{size[0]}x{size[1]}.npz"), picture(1, *size)
    assert zlib.crc32(x.numpy().tobytes()) == expected["input_crc32"]
    with torch.no_grad():
        levels = tower(x)
        for variant in ("released", "paper"):
            rrformer.variant = variant
            found = rrformer(x, levels)
            assert found.shape == x.shape
            np.testing.assert_allclose(found[..., ::4, ::4], expected[f"{variant}.strided4"], rtol=0, atol=1e-4)
        half = rrformer.conv3(rrformer.conv2(rrformer.embed(x, levels)))
    np.testing.assert_allclose(half[:, ::15, ::4, ::4], expected["conv3.strided4"], rtol=0, atol=1e-4)


def test_losses_equal_the_published_ones(golden, tower, critic, picture):
    expected, p, t = golden("rrformer_losses.json"), picture(2, 64, 80, "pred"), picture(2, 64, 80, "target")
    with torch.no_grad():
        found = {
            "pixel": losses.pixel_loss(p, t).item(),
            "vgg": losses.perceptual_loss(tower, p, t).item(),
            "content": losses.content_loss(tower, p, t).item(),
            "netD_pred": critic(p).tolist(),
            "netD_target": critic(t).tolist(),
        }
        g, d = losses.adversarial_losses(critic(p), critic(t))
    for name, value in {**found, "rasgan_G": g.item(), "rasgan_D": d.item()}.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_perceptual_loss_sends_gradients_to_the_prediction_only(picture):
    tower = network("vgg19-features", widths=(2, 2, 2, 2, 2))
    p, t = picture(1, 32, 32, "pred").requires_grad_(), picture(1, 32, 32, "target").requires_grad_()
    losses.perceptual_loss(tower, p, t).backward()
    assert p.grad.abs().sum() > 0
    assert t.grad is None
