"""EfficientNet-Lite0: an image backbone without squeeze-and-excitation, made for processors.

Knows the layout (timm's key names, TensorFlow's padding); knows no task.
"""

import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""By RGB channel, as a share of 255: inputs run from -1 to 1."""

_EPS, _MOMENTUM = 1e-3, 0.01

_STAGES = (
    # expansion, channels, blocks, stride, kernel (EfficientNet, table 1; stem and head are not scaled in Lite)
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)

_LEVELS = (1, 2, 4, 6)
"""Stages after which the sides are 1/4, 1/8, 1/16 and 1/32 of the picture's."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, 2019; the Lite release, 2020).

    With 0 `classes` it has no head and no classifier, for a backbone of features.
    """

    channels = tuple(_STAGES[stage][1] for stage in _LEVELS)
    """Channels of the four levels that `features` returns: 24, 40, 112, 320."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, 32, 3, stride=2)
        self.bn1 = _norm(32)
        self.blocks = nn.Sequential(*_stages(inputs=32))
        self.classes = classes
        if classes:
            self.conv_head = nn.Conv2d(_STAGES[-1][1], 1280, 1, bias=False)
            self.bn2 = _norm(1280)
            self.classifier = nn.Linear(1280, classes)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Four levels (n, c, h/s, w/s) of pictures (n, 3, h, w), s = 4, 8, 16, 32."""
        x = F.relu6(self.bn1(self.conv_stem(x)))
        levels = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in _LEVELS:
                levels.append(x)
        return tuple(levels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Logits (n, classes) where there is a classifier, else the levels of `features`."""
        levels = self.features(x)
        return self.classifier(self.embed(levels[-1])) if self.classes else levels

    def embed(self, deepest: Tensor) -> Tensor:
        """Input of the classifier: (n, 1280) of the deepest level (n, 320, h/32, w/32)."""
        seen: Tensor = F.relu6(self.bn2(self.conv_head(deepest)))
        pooled: Tensor = seen.mean(dim=(2, 3))
        return pooled


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: where a stride leaves an odd rest, it goes right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            inputs, outputs, kernel, stride, padding=0 if stride > 1 else kernel // 2, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h/stride), ceil(w/stride))."""
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._margins(side) for side in x.shape[-2:])
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)

    def _margins(self, side: int) -> tuple[int, int]:
        stride, kernel = self.stride[0], self.kernel_size[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class DepthwiseSeparable(nn.Module):
    """The first stage's block: a depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = _norm(inputs)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h/stride, w/stride)."""
        out: Tensor = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return out


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise, project; added to its input where both have one shape (MobileNetV2)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv_pw = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = _norm(hidden)
        self.conv_dw = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.bn2 = _norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = _norm(outputs)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h/stride, w/stride)."""
        out = F.relu6(self.bn1(self.conv_pw(x)))
        out = F.relu6(self.bn2(self.conv_dw(out)))
        narrow: Tensor = self.bn3(self.conv_pwl(out))
        return x + narrow if self.has_skip else narrow


def _stages(inputs: int) -> list[nn.Sequential]:
    stages = []
    for expansion, outputs, blocks, stride, kernel in _STAGES:
        stage: list[nn.Module] = []
        for index in range(blocks):
            step = stride if index == 0 else 1
            stage.append(
                DepthwiseSeparable(inputs, outputs, kernel, step)
                if expansion == 1
                else InvertedResidual(inputs, outputs, kernel, step, expansion)
            )
            inputs = outputs
        stages.append(nn.Sequential(*stage))
    return stages


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=_MOMENTUM)
