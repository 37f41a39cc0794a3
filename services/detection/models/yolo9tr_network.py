"""YOLO9tr's network: a YOLOv9-S with position attention.

Knows the graph and the official checkpoint's layout, key for key. In the official size `s` the attention feeds the
auxiliary branch alone, which only training reads; in `l` it is on both branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fovea.errors import InvalidOption
from services.detection.boxes.geometry import decode
from services.detection.layers import (
    AveragedConv,
    Conv,
    Elan,
    Integral,
    PositionAttention,
    RepElan,
    SppElan,
    raw_maps,
    towers,
)
from shared.registry import builder
from shared.vision.backbones.pooling import pool_levels

Size = Literal["s", "l"]
"""`s`: attention on the auxiliary branch; `l`: on both."""

Branch = Literal["both", "main"]
"""`main` leaves out what only the auxiliary branch needs."""

STRIDES = (8, 16, 32)
"""Pixels per cell of the three levels."""

_AUXILIARY = range(22, 32)
_AUXILIARY_LEVELS, _MAIN_LEVELS, _ATTENDED_LEVELS = (29, 30, 31), (15, 18, 21), (32, 33, 34)

_BACKBONE = (4, 6, 9)
"""Last layers of the backbone at 1/8, 1/16 and 1/32."""

Source = int | tuple[int, int]

_SOURCES: dict[int, Source] = {
    11: (10, 6), 14: (13, 4), 17: (16, 12), 20: (19, 9), 22: 8, 24: (23, 6), 27: (26, 4),
    29: 28, 30: 25, 31: 22, 32: 15, 33: 18, 34: 21,
}  # fmt: skip
"""Layers whose input is not the previous layer; two sources are concatenated."""


class DualHead(nn.Module):
    """Towers of both branches, in checkpoint order: `cv2`, `cv3` auxiliary, `cv4`, `cv5` main."""

    def __init__(self, channels: Sequence[int], classes: int, branch: Branch) -> None:
        super().__init__()
        self.both = branch == "both"
        if self.both:
            self.cv2, self.cv3 = towers(channels, classes, STRIDES)
        self.cv4, self.cv5 = towers(channels, classes, STRIDES)
        if self.both:
            self.dfl = Integral()
        self.dfl2 = Integral()

    def forward(self, main: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """Raw maps (n, 64 + classes, h, w) of the main branch, and of the auxiliary one where it is there."""
        second = raw_maps(self.cv2, self.cv3, auxiliary) if self.both else None
        return raw_maps(self.cv4, self.cv5, main), second


@builder("yolo9tr", layouts=({}, {"size": "l"}))
class Yolo9tr(nn.Module):
    """YOLO9tr (2024), sections 1 and 2 of the description; `model.<layer>` as in the official checkpoint.

    `size` says where the attention is; the branch `main` is for serving, `both` for training and for reading official
    checkpoints whole; `width` is a factor on every channel count. The defaults are the official layout (10,202,378
    parameters).
    """

    def __init__(self, classes: int = 7, size: Size = "s", branch: Branch = "both", width: float = 1.0) -> None:
        super().__init__()
        if width * 32 != int(width * 32) or width < 1 / 16:
            detail = f"The width {width} splits channels unevenly."
            raise InvalidOption(detail, hint="Take a multiple of 1/32, at least 1/16.", field="width")
        self.classes, self.size, self.width = classes, size, width
        layers = _layers(width)
        if size == "l":
            layers |= {32 + i: PositionAttention(_scaled(c, width)) for i, c in enumerate((128, 192, 256))}
        if branch == "main":
            layers = {index: layer for index, layer in layers.items() if index not in _AUXILIARY}
        self.main_levels = _ATTENDED_LEVELS if size == "l" else _MAIN_LEVELS
        self.auxiliary_levels = _AUXILIARY_LEVELS if branch == "both" else ()
        self.model = nn.ModuleDict({str(index): layer for index, layer in layers.items()})
        self.head = "35" if size == "l" else "32"
        self.model[self.head] = DualHead([_scaled(c, width) for c in (128, 192, 256)], classes, branch)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """Raw maps (n, 64 + classes, h, w) of P3, P4, P5: of the main branch, and of the auxiliary one or None.

        Raises InvalidOption: height or width is not a multiple of 32.
        """
        height, width = x.shape[-2:]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            detail = f"Height and width must be multiples of {STRIDES[-1]}, got {height}x{width}."
            raise InvalidOption(detail, hint="Letterbox the picture first.", field="x")
        return self.maps(x)

    def maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """`forward` without its size check: what exporters trace."""
        return self._heads(self._layers(x))

    def _layers(self, x: Tensor) -> dict[int, Tensor]:
        made: dict[int, Tensor] = {}
        for key, layer in self.model.items():
            if key == self.head:
                break
            index = int(key)
            made[index] = x = layer(_input(made, x, _SOURCES.get(index, index - 1)))
        return made

    def _heads(self, made: Mapping[int, Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        main, auxiliary = ([made[i] for i in levels] for levels in (self.main_levels, self.auxiliary_levels))
        found: tuple[list[Tensor], list[Tensor] | None] = self.model[self.head](main, auxiliary)
        return found

    @staticmethod
    def classes_of(state: Mapping[str, Tensor]) -> int | None:
        """Classes of an official checkpoint, from the bias of its last class tower; None where it has none."""
        biases = [tensor for key, tensor in state.items() if key.endswith("cv5.0.2.bias")]
        return len(biases[0]) if len(biases) == 1 and biases[0].ndim == 1 else None

    def main_branch(self) -> Yolo9tr:
        """A copy without what only the auxiliary branch needs."""
        main, state = Yolo9tr(self.classes, self.size, "main", self.width), self.state_dict()
        main.load_state_dict({key: state[key] for key in main.state_dict()})
        return main

    def predictions(self, x: Tensor) -> Tensor:
        """The decoded main branch (n, 4 + classes, a): centre, size in pixels of `x`, then scores: the served form."""
        return decode(self.maps(x)[0], self.classes, STRIDES)

    def predictions_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`predictions`, and the mean of each channel of the backbone's three levels (n, c)."""
        made = self._layers(x)
        features = pool_levels([made[index] for index in _BACKBONE])
        return decode(self._heads(made)[0], self.classes, STRIDES), features


def _input(made: dict[int, Tensor], x: Tensor, source: Source) -> Tensor:
    if isinstance(source, tuple):
        return torch.cat([made[source[0]], made[source[1]]], dim=1)
    return made.get(source, x)


def _scaled(channels: int, width: float) -> int:
    return int(channels * width)


def _layers(width: float) -> dict[int, nn.Module]:
    """Layers 0 to 31 of both sizes."""

    def c(channels: int) -> int:
        return _scaled(channels, width)

    def rep(inputs: int, channels: int) -> RepElan:
        return RepElan(c(inputs), c(channels), c(channels), c(channels // 2))

    def up() -> nn.Module:
        return nn.Upsample(scale_factor=2, mode="nearest")

    return dict(
        enumerate(
            (
                Conv(3, c(32), 3, 2),
                Conv(c(32), c(64), 3, 2),
                Elan(c(64), c(64), c(64), c(32)),
                AveragedConv(c(64), c(128)),
                rep(128, 128),
                AveragedConv(c(128), c(192)),
                rep(192, 192),
                AveragedConv(c(192), c(256)),
                rep(256, 256),
                SppElan(c(256), c(256), c(128)),
                up(),
                nn.Identity(),
                rep(448, 192),
                up(),
                nn.Identity(),
                rep(320, 128),
                AveragedConv(c(128), c(96)),
                nn.Identity(),
                rep(288, 192),
                AveragedConv(c(192), c(128)),
                nn.Identity(),
                rep(384, 256),
                SppElan(c(256), c(256), c(128)),
                up(),
                nn.Identity(),
                rep(448, 192),
                up(),
                nn.Identity(),
                rep(320, 128),
                PositionAttention(c(128)),
                PositionAttention(c(192)),
                PositionAttention(c(256)),
            )
        )
    )
