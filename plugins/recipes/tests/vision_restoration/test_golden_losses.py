"""Losses of restoration against the published ones."""

import numpy as np
import torch

from fovea_recipes.vision_restoration import losses
from plugins.recipes.tests.golden_files import read
from shared.registry import network


def test_losses_equal_the_published_ones(fill, picture):
    expected, p, t = read("rrformer_losses.json"), picture(2, 64, 80, "pred"), picture(2, 64, 80, "target")
    tower = fill(network("vgg19-features"), "vgg:")
    critic = fill(network("rrformer-discriminator"), "netD:")
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
