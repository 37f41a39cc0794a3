"""FasterNet: the baseline of PATNet, and a plain fast backbone. Knows the published sizes."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from services.detection.layers.partial import PartialConv, PartialNetwork, Shape, drop_path, perceptron
from shared.registry import builder

Size = Literal["t0", "t1", "t2", "s"]

SIZES: Mapping[Size, Shape] = {
    "t0": Shape(40, (1, 2, 8, 2), nn.GELU),
    "t1": Shape(64, (1, 2, 8, 2), nn.GELU, 0.02),
    "t2": Shape(96, (1, 2, 8, 2), nn.ReLU, 0.05),
    "s": Shape(128, (1, 2, 13, 2), nn.ReLU, 0.1),
}
"""Published sizes; their ImageNet top-1 is 71.9, 76.2, 78.9 and 81.3."""


class _Block(nn.Module):
    """x + mlp(partial convolution of x)."""

    def __init__(self, channels: int, activation: type[nn.Module], rate: float) -> None:
        super().__init__()
        self.mlp = perceptron(channels, activation)
        self.spatial_mixing = PartialConv(channels)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        branch: Tensor = self.mlp(self.spatial_mixing(x))
        return x + drop_path(branch, self.rate, self.training)


@builder("fasternet", layouts=[{"size": size} for size in SIZES])
class FasterNet(PartialNetwork):
    """FasterNet (Chen et al., CVPR 2023); with `features` it has four maps for a detector instead of logits."""

    def __init__(self, size: Size = "t0", classes: int = 1000, *, features: bool = False) -> None:
        shape = SIZES[size]
        super().__init__(
            shape, lambda _, channels, rate: _Block(channels, shape.activation, rate), classes, features=features
        )
