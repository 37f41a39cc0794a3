"""A start at the identity: an untrained RRFormer that hands its picture through, so that training begins at the input.

Knows the layers of the network. Its layout has no skip from the picture to the answer, but all its layers can pass
values on: three channels carry the picture at full resolution, twelve carry it at half (two by two pixels of three
colours), and every other weight begins small around them.
"""

import torch
from torch import Tensor, nn

from services.vision_restoration.models.rrformer_network import RRFormer

_QUIET = 0.1
"""Share left of random weights that lead into a carrying channel."""


@torch.no_grad()
def start_at_identity(net: RRFormer) -> None:
    """Change the initial weights in place; the answer is then the picture, but for the quiet rest."""
    for layer in (net.conv1, net.conv2, net.deconv2, net.deconv3):
        _carry(layer.conv2d, offset=0)
    _carry(
        net.pyramid_module.bottleneck, offset=net.pyramid_module.bottleneck.in_channels - net.conv1.conv2d.out_channels
    )
    down, up = net.conv3.conv2d, net.deconv1.conv2d
    _hush(down, slice(0, 12))
    up.weight[:, :3] *= _QUIET
    _silence(up, slice(0, 3))
    for row, (colour, y, x) in enumerate(torch.cartesian_prod(*(torch.arange(n) for n in (3, 2, 2))).tolist()):
        down.weight[row, colour, 1 + y, 1 + x] += 1
        up.weight[row, colour, 1 + y, 1 + x] += 1
    _hush(net.swinir_block.conv_after_body, slice(None))


def _carry(conv: nn.Conv2d | nn.ConvTranspose2d, offset: int) -> None:
    """Outputs 0 to 2 repeat inputs `offset` to `offset + 2`."""
    _hush(conv, slice(0, 3))
    middle = conv.kernel_size[0] // 2
    for channel in range(3):
        conv.weight[channel, offset + channel, middle, middle] += 1


def _hush(conv: nn.Conv2d | nn.ConvTranspose2d, outputs: slice) -> None:
    conv.weight[outputs] *= _QUIET
    _silence(conv, outputs)


def _silence(conv: nn.Conv2d | nn.ConvTranspose2d, outputs: slice) -> None:
    bias: Tensor | None = conv.bias
    if bias is not None:
        bias[outputs] = 0
