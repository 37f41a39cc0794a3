"""The Omni-Kernel: large depthwise kernels next to two gates in the frequency domain (HieraEdgeNet, section 3).

Knows the layout of the official module, dead parts included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.detection.layers.conv import Conv
from services.detection.layers.edge import plain_norms
from services.detection.layers.fourier import Transform, convolve_by_fft, filter_spectrum

LONG = 31
"""Pixels that the large kernels span."""


class FrequencyGate(nn.Module):
    """FGM: x, and the share alpha of x filtered by a spectrum that x itself draws.

    The factor on the spectrum is indexed by place, as published. `conv` is in every checkpoint and used nowhere.
    With alpha 0 and beta 1, as it starts, the gate is the identity.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(dim, 1, 1))
        self.beta = nn.Parameter(torch.ones(dim, 1, 1))
        self.conv = nn.Conv2d(dim, 2 * dim, 3, padding=1, groups=dim)
        self.dwconv1 = nn.Conv2d(dim, dim, 1)
        self.dwconv2 = nn.Conv2d(dim, dim, 1)
        self.transform: Transform = "fft"

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, h, w) → (n, d, h, w)."""
        return filter_spectrum(self.dwconv2(x), self.dwconv1(x), self.transform) * self.alpha + x * self.beta


class OmniKernel(nn.Module):
    """One map through a 31x31, a 1x31, a 31x1 and a 1x1 kernel and through two gates; the residual is the input.

    The first gate weighs the spectrum by one number per channel: |ifft2(a · fft2(o))| is |a · o|, and needs no FFT.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = LONG // 2
        self.in_conv = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU())
        self.out_conv = nn.Conv2d(dim, dim, 1)
        self.dw_13 = nn.Conv2d(dim, dim, (1, LONG), padding=(0, half), groups=dim)
        self.dw_31 = nn.Conv2d(dim, dim, (LONG, 1), padding=(half, 0), groups=dim)
        self.dw_33 = nn.Conv2d(dim, dim, LONG, padding=half, groups=dim)
        self.dw_11 = nn.Conv2d(dim, dim, 1, groups=dim)
        self.conv = nn.Conv2d(dim, dim, 1)
        self.fac_conv = nn.Conv2d(dim, dim, 1)
        self.fgm = FrequencyGate(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, h, w) → (n, d, h, w)."""
        features = self.in_conv(x)
        gated = self._gated(features, self.fac_conv(_mean(features)))
        gate = self.fgm(self.conv(_mean(gated)) * gated)
        made: Tensor = self.out_conv(F.relu(x + self.large(features) + gate))
        return made

    def large(self, features: Tensor) -> Tensor:
        """The sum of the four depthwise convolutions (n, d, h, w).

        In training as one, through an FFT: the gradient of so large a kernel takes four times as long otherwise.
        """
        if not self.training:
            made: Tensor = self.dw_13(features) + self.dw_31(features) + self.dw_33(features) + self.dw_11(features)
            return made
        parts = (self.dw_13, self.dw_31, self.dw_33, self.dw_11)
        kernel = torch.stack([_centred(conv.weight) for conv in parts]).sum(dim=0)
        bias = torch.stack([conv.get_parameter("bias") for conv in parts]).sum(dim=0)
        return convolve_by_fft(features, kernel) + bias[:, None, None]

    def _gated(self, features: Tensor, weights: Tensor) -> Tensor:
        if self.fgm.transform == "dft":  # the graph as published, for comparison
            return filter_spectrum(features, weights, "dft")
        return (weights * features).abs()


class CSPOmniKernel(nn.Module):
    """The Omni-Kernel on a quarter of the channels; the others pass next to it."""

    def __init__(self, dim: int, e: float = 0.25) -> None:
        super().__init__()
        self.cv1 = Conv(dim, dim)
        self.cv2 = Conv(dim, dim)
        self.sizes = [int(dim * e), dim - int(dim * e)]
        self.m = OmniKernel(self.sizes[0])
        plain_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, h, w) → (n, d, h, w)."""
        features, passed = torch.split_with_sizes(self.cv1(x), self.sizes, dim=1)
        made: Tensor = self.cv2(torch.cat((self.m(features), passed), dim=1))
        return made


def _centred(kernel: Tensor) -> Tensor:
    """A kernel (d, 1, kh, kw) in the middle of one of 31x31."""
    high, wide = ((LONG - side) // 2 for side in kernel.shape[-2:])
    return F.pad(kernel, (wide, wide, high, high))


def _mean(x: Tensor) -> Tensor:
    """Mean of each channel (n, d, 1, 1)."""
    return x.mean(dim=(2, 3), keepdim=True)
