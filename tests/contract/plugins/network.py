"""A network of one convolution over colours."""

from torch import Tensor, nn

from shared.registry import builder


class ColourNet(nn.Module):
    """Scores each pixel by the colours around it."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 1, 3, padding=1)

    def prediction(self, x: Tensor) -> Tensor:
        """Logits (n, 1, h, w) of pictures (n, 3, h, w)."""
        scores: Tensor = self.score(x)
        return scores

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction(x)


@builder("toy-colour")
def colour_net() -> ColourNet:
    return ColourNet()
