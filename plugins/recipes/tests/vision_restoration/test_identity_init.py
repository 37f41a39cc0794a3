"""A network that begins at the identity."""

import torch

from fovea_recipes.vision_restoration.identity_init import start_at_identity
from shared.registry import network


def test_a_network_can_begin_at_the_identity(picture):
    torch.manual_seed(0)
    net = network("rrformer", "paper", levels=(4, 4, 4, 4, 4), features=16, body=16, groups=1, blocks=2, heads=2)
    tower, x = network("vgg19-features", widths=(4, 4, 4, 4, 4)), picture(1, 64, 64)
    with torch.no_grad():
        start_at_identity(net)
        assert (net.eval()(x, tower(x)) - x).abs().mean() < 0.05
        for parameter in net.parameters():  # without the quiet rest, nothing but the picture is left
            parameter[parameter != 1] = torch.where(parameter[parameter != 1] > 0.75, 1.0, 0.0)
        torch.testing.assert_close(net(x, tower(x)), x, rtol=0, atol=1e-6)
