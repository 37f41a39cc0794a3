"""HieraEdgeNet's network: a YOLO12n with an edge stream and an Omni-Kernel at its finest level.

Knows the modules of the official release, key for key. The file that wires them is in no published revision: the wiring
here is an assumption, built of two public configurations with the same modules, and an import compares every key.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.errors import InvalidOption
from services.detection.boxes.geometry import decode
from services.detection.layers.area import AreaElan, CrossStage
from services.detection.layers.conv import EPS, MOMENTUM, Conv
from services.detection.layers.edge import Edge, EdgeFusion, EdgeModule, SpaceToDepthConv
from services.detection.layers.fourier import Transform
from services.detection.layers.head import BINS, Integral, raw_maps
from services.detection.layers.omni import CSPOmniKernel, FrequencyGate
from shared.registry import builder
from shared.vision.backbones.pooling import pool_levels
from shared.vision.decode import decode as decode_picture

STRIDES = (8, 16, 32)
"""Pixels per cell of the three levels."""

_LEVELS = (23, 26, 29)
_HEAD = "30"

Source = int | tuple[int, ...]

_SOURCES: Mapping[int, Source] = {
    7: 2, 9: (4, 8), 12: (5, 11), 15: (6, 14), 17: (16, 12), 20: 2, 21: (20, 19, 9), 25: (24, 18), 28: (27, 15),
}  # fmt: skip
"""Layers whose input is not the previous layer; layers 4, 5 and 6 are the three outputs of layer 3."""

_BACKBONE = (8, 12, 15)
"""Last layers of the backbone at 1/8, 1/16 and 1/32."""

_EDGES, _FUSIONS = 3, frozenset({9, 12, 15})

Net = TypeVar("Net", bound=nn.Module)


class _Head(nn.Module):
    """Per level a tower for boxes and a cheap one, of depthwise convolutions, for classes."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        boxes, kinds = max(16, channels[0] // 4, 4 * BINS), max(channels[0], min(classes, 100))
        self.cv2, self.cv3 = nn.ModuleList(), nn.ModuleList()
        for width, stride in zip(channels, STRIDES, strict=True):
            rare = math.log(5 / classes / (640 / stride) ** 2)  # five objects on a picture of 640
            self.cv2.append(nn.Sequential(Conv(width, boxes, 3), Conv(boxes, boxes, 3), _last(boxes, 4 * BINS, 1.0)))
            towers = _separable(width, kinds), _separable(kinds, kinds), _last(kinds, classes, rare)
            self.cv3.append(nn.Sequential(*towers))
        self.dfl = Integral()

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Raw maps (n, 64 + classes, h, w)."""
        return raw_maps(self.cv2, self.cv3, levels)


def _last(inputs: int, outputs: int, bias: float) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 1)
    conv.bias = nn.Parameter(torch.full((outputs,), bias))
    return conv


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, inputs, 3, groups=inputs), Conv(inputs, outputs))


@builder("hieraedgenet")
class HieraEdgeNet(nn.Module):
    """HieraEdgeNet (2025); `model.<layer>` as official checkpoints name them.

    With `official` edges the edge maps are 0 whatever the picture, as in the release; `described` ones are real. The
    defaults are the official layout (3,478,460 parameters).
    """

    def __init__(self, classes: int = 120, edge: Edge = "official") -> None:
        super().__init__()
        self.classes, self.edge = classes, edge
        self.model = nn.ModuleDict({str(index): layer for index, layer in enumerate(_layers(edge))})
        self.model[_HEAD] = _Head((64, 128, 256), classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = EPS, MOMENTUM

    def forward(self, x: Tensor) -> list[Tensor]:
        """Raw maps (n, 64 + classes, h, w) of P3, P4, P5 of pictures (n, 3, h, w) in 0..1.

        Raises InvalidOption: height or width is not a multiple of 32.
        """
        height, width = x.shape[-2:]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            detail = f"Height and width must be multiples of {STRIDES[-1]}, got {height}x{width}."
            raise InvalidOption(detail, hint="Letterbox the picture first.", field="x")
        return self.maps(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """`forward` without its size check: what exporters trace."""
        return self._heads(self._layers(x))

    def _layers(self, x: Tensor) -> dict[int, Tensor]:
        made: dict[int, Tensor] = {}
        for index in range(int(_HEAD)):
            layer = self.model[str(index)]
            source = _SOURCES.get(index, index - 1)
            if index == _EDGES:
                made[4], made[5], made[6] = layer(made[2])
            elif index in _FUSIONS:
                made[index] = layer(_gathered(made, source))
            elif index not in made:
                made[index] = layer(
                    torch.cat(_gathered(made, source), 1) if isinstance(source, tuple) else made.get(source, x)
                )
        return made

    def _heads(self, made: Mapping[int, Tensor]) -> list[Tensor]:
        levels: list[Tensor] = self.model[_HEAD]([made[index] for index in _LEVELS])
        return levels

    def predictions(self, x: Tensor) -> Tensor:
        """Decoded boxes (n, 4 + classes, a): centre and size in pixels of `x`, then scores: the served form."""
        return decode(self.maps(x), self.classes, STRIDES)

    def predictions_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`predictions`, and the mean of each channel of the backbone's three levels (n, c)."""
        made = self._layers(x)
        features = pool_levels([made[index] for index in _BACKBONE])
        return decode(self._heads(made), self.classes, STRIDES), features


def _gathered(made: Mapping[int, Tensor], source: Source) -> list[Tensor]:
    return [made[index] for index in (source if isinstance(source, tuple) else (source,))]


def _layers(edge: Edge) -> Sequence[nn.Module]:
    """Layers 0 to 29; identities stand for what only joins or picks."""
    up = [nn.Upsample(scale_factor=2, mode="nearest") for _ in range(2)]
    return (
        Conv(3, 16, 3, 2),
        Conv(16, 32, 3, 2),
        CrossStage(32, 64, e=0.25),
        EdgeModule(64, (32, 64, 128), edge),
        nn.Identity(),
        nn.Identity(),
        nn.Identity(),
        Conv(64, 64, 3, 2),
        CrossStage(64, 128, e=0.25),
        EdgeFusion((32, 128), 128),
        Conv(128, 128, 3, 2),
        AreaElan(128, 128, depth=2, area=4),
        EdgeFusion((64, 128), 128),
        Conv(128, 256, 3, 2),
        AreaElan(256, 256, depth=2, area=1),
        EdgeFusion((128, 256), 256),
        up[0],
        nn.Identity(),
        AreaElan(384, 128),
        up[1],
        SpaceToDepthConv(64, 64),
        nn.Identity(),
        CSPOmniKernel(320),
        AreaElan(320, 64),
        Conv(64, 64, 3, 2),
        nn.Identity(),
        AreaElan(192, 128),
        Conv(128, 128, 3, 2),
        nn.Identity(),
        CrossStage(384, 256, deep=True),
    )


@torch.no_grad()
def with_transform(network: Net, transform: Transform = "matrices") -> Net:
    """A copy that filters frequencies another way: `matrices` for serving, `dft` for the graph to measure against."""
    made = copy.deepcopy(network)
    for module in made.modules():
        if isinstance(module, FrequencyGate):
            module.transform = transform
    return made


def roll_slides(shape: tuple[int, ...]) -> Tensor:
    """The example slide at a size (n, 3, h, w), rolled so that no two are alike.

    Engines are compared on it: noise drives the products of the Omni-Kernel's gate beyond what float32 resolves.
    """
    data = resources.files("services.detection.models").joinpath("pollen.jpg").read_bytes()
    x = torch.from_numpy(decode_picture(data).pixels.copy()).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, size=shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([x.roll(index * shape[-1] // shape[0], dims=-1) for index in range(shape[0])])
