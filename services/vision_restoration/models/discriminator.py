"""The discriminator of RRFormer's adversarial loss, key for key with `netD` of the official checkpoints."""

from typing import ClassVar, cast

from torch import Tensor, nn

from shared.registry import builder

_PLAN = ((64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2), (512, 1), (512, 2))
"""Channels and stride of each convolution."""


class Discriminator(nn.Module):
    """Ten convolutions with group norms, a global mean, and one number: how real a picture looks."""

    nested: ClassVar[str] = "netD"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, stride in _PLAN:
            norm = [nn.GroupNorm(32, channels)] if layers else []
            layers += [nn.Conv2d(inputs, channels, 3, stride, padding=1), *norm, nn.LeakyReLU(0.2)]
            inputs = channels
        self.body = nn.Sequential(*layers)
        self.tail = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, 1024, 1), nn.LeakyReLU(0.2), nn.Conv2d(1024, 1, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits (n,) of pictures (n, 3, h, w)."""
        return cast("Tensor", self.tail(self.body(image))).flatten()


@builder("rrformer-discriminator")
def discriminator() -> Discriminator:
    """The discriminator with random weights."""
    return Discriminator()
