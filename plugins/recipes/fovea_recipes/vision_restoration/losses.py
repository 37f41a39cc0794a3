"""RRFormer's losses: pixels and their differences, VGG features, and a relativistic average GAN.

Knows tensors of pictures (n, 3, h, w) in 0..1; knows no network but the tower that it is given.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Tower = Callable[[Tensor], Sequence[Tensor]]

_LEVELS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """0.2·MSE + 0.4·(L1 of vertical differences + L1 of horizontal differences)."""
    error = predicted - target
    steps = [error.diff(dim=axis).abs().mean() for axis in (-2, -1)]
    return 0.2 * error.square().mean() + 0.4 * (steps[0] + steps[1])


def perceptual_loss(tower: Tower, predicted: Tensor, target: Tensor) -> Tensor:
    """Weighted L1 between the five VGG levels of both pictures, normalised as ImageNet's were."""
    with torch.no_grad():
        wanted = tower(_normalised(target))
    pairs = zip(_LEVELS, tower(_normalised(predicted)), wanted, strict=True)
    return torch.stack([weight * F.l1_loss(found, level) for weight, found, level in pairs]).sum()


def adversarial_losses(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of generator and discriminator (relativistic average GAN) from the discriminator's logits (n,) of both."""
    real, fake = target - predicted.mean(), predicted - target.mean()
    one, zero = torch.ones_like(predicted), torch.zeros_like(predicted)
    bce = F.binary_cross_entropy_with_logits
    return (bce(real, zero) + bce(fake, one)) / 2, (bce(real, one) + bce(fake, zero)) / 2


def _normalised(image: Tensor) -> Tensor:
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (image - mean) / std
