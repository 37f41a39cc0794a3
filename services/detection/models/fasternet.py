"""FasterNet: the baseline of PATNet, and a plain fast backbone. Knows the published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from services.detection.layers.partial import PartialConv, PartialNetwork, Shape, drop_path, perceptron
from services.detection.servables.classifier import FEATURE_MAPS_NOTE, Classifier, claim_idle_channels
from shared.registry import Card, Metric, Paper, builder
from shared.registry.measured import measured_card

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


class FasterNet(PartialNetwork):
    """FasterNet (Chen et al., CVPR 2023).

    Args:
        size: Published size.
        classes: Outputs of the classifier.
        features: Four feature maps for a detector instead of logits.
    """

    def __init__(self, size: Size, classes: int = 1000, *, features: bool = False) -> None:
        shape = SIZES[size]
        super().__init__(
            shape, lambda _, channels, rate: _Block(channels, shape.activation, rate), classes, features=features
        )


@builder("fasternet", layouts=[{"size": size} for size in SIZES])
def fasternet(size: Size = "t0", classes: int = 1000, features: bool = False) -> FasterNet:
    """FasterNet with random weights."""
    return FasterNet(size, classes, features=features)


class FasterNetClassifier(Classifier):
    """FasterNet, served."""

    weights = "fasternet"
    card = measured_card(
        Card(
            name="fasternet",
            task="classify",
            summary="Tells photographs of clothes by their kind with partial convolutions; the baseline of patnet.",
            paper=Paper(
                title="Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks",
                venue="CVPR",
                year=2023,
                url="https://arxiv.org/abs/2303.03667",
            ),
            licence="Code: Apache-2.0. Weights: trained on Clothing dataset (small), CC0; Apache-2.0. "
            "Official weights: MIT.",
            metrics=tuple(
                Metric(name=f"top_1.{size}", ours=None, paper=value, data="ImageNet-1k", note="Full training, 224 px.")
                for size, value in (("t0", 0.719), ("t1", 0.762), ("t2", 0.789), ("s", 0.813))
            ),
            notes=(
                (
                    "It tells ten kinds of clothes apart on photographs of single pieces; the label of anything else "
                    "means nothing. Its warnings were taught by smears (BCCD, MIT) and roads (DNIT, CC BY 4.0), and "
                    "catch most of these; of other kinds they miss nearly all: see auroc_polyps, auroc_unlearnt_cells "
                    "and auroc_unlearnt_pavement."
                ),
                (
                    "Learnt as patnet did, from 1,424 photographs and an EfficientNet-Lite0 (ImageNet) that was "
                    "fine-tuned on them, whose own figure is teacher_top_1: where size does not matter, serve the "
                    "teacher. Official weights tell ImageNet's classes by number: they carry no names."
                ),
                FEATURE_MAPS_NOTE,
            ),
            sparsity=claim_idle_channels("fasternet"),
            example={},
        ),
        Classifier.folder,
    )
