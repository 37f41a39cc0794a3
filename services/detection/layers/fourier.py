"""Filtering in the frequency domain, three ways: by FFT, by matrices of cosines and sines, by ONNX's DFT operator.

All compute |ifft2(weights · fft2(x))|. The matrices need no complex numbers and no DFT operator, which ONNX Runtime
runs slowly: that form is exported. The operator's form exists to be measured against. Knows arrays, no network.
"""

import math
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

Transform = Literal["fft", "matrices", "dft"]
"""How: `fft` to train, `matrices` to serve, `dft` as the graph that a plain export would be."""


def filter_spectrum(x: Tensor, weights: Tensor, transform: Transform = "fft") -> Tensor:
    """|ifft2(weights · fft2(x))| of real maps (n, c, h, w); `weights` broadcasts over the spectrum."""
    if transform == "matrices":
        return _by_matrices(x, weights)
    if transform == "dft":
        spectrum = _dft(_dft(_complex(x), 2, False), 3, False) * weights.unsqueeze(-1)
        pairs = _dft(_dft(spectrum, 3, True), 2, True)
        return pairs.square().sum(dim=-1).sqrt()
    back: Tensor = torch.fft.ifft2(weights.float() * torch.fft.fft2(x.float()))  # there is no FFT of half floats
    return back.abs()


def convolve_by_fft(x: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise convolution of maps (n, c, h, w) with an odd kernel (c, 1, k, k), same size, zero padding, by FFT."""
    (height, width), side = x.shape[-2:], kernel.shape[-1]
    size = (height + side - 1, width + side - 1)
    spectrum = torch.fft.rfft2(x.float(), s=size) * torch.fft.rfft2(kernel[:, 0].float().flip(-2, -1), s=size)
    whole: Tensor = torch.fft.irfft2(spectrum, s=size)
    return whole[..., side // 2 : side // 2 + height, side // 2 : side // 2 + width]


def _by_matrices(x: Tensor, weights: Tensor) -> Tensor:
    """Rows and columns are transformed by products with cosines and sines, real and imaginary parts kept apart."""
    (cos_h, sin_h), (cos_w, sin_w) = (_waves(int(size), x.dtype, x.device) for size in x.shape[-2:])
    across, along = x @ cos_w, x @ sin_w
    real = (cos_h @ across - sin_h @ along) * weights
    imaginary = -(sin_h @ across + cos_h @ along) * weights
    above, below = cos_h @ real - sin_h @ imaginary, sin_h @ real + cos_h @ imaginary
    real, imaginary = above @ cos_w - below @ sin_w, above @ sin_w + below @ cos_w
    return (real.square() + imaginary.square()).sqrt() / (x.shape[-2] * x.shape[-1])


@lru_cache(maxsize=64)
def _waves(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2π·i·k/size (size, size); the product is reduced first, so that large sizes stay exact."""
    # In NumPy: what is computed here must be a constant to whoever traces the network.
    turns = np.outer(np.arange(size), np.arange(size)) % size * (2 * math.pi / size)
    with torch.inference_mode(mode=False):  # kept longer than this call: a later one may need gradients
        cosines, sines = (torch.from_numpy(wave(turns)).to(device, dtype) for wave in (np.cos, np.sin))
    return cosines, sines


def _complex(x: Tensor) -> Tensor:
    """Real numbers as pairs (…, 2), as ONNX writes complex ones."""
    return torch.stack((x, torch.zeros_like(x)), dim=-1)


class _Dft(torch.autograd.Function):
    """One axis by ONNX's DFT operator when traced, by torch's FFT otherwise."""

    @staticmethod
    def forward(_: Any, x: Tensor, axis: int, inverse: bool) -> Tensor:
        """(…, 2) → (…, 2)."""
        turn = torch.fft.ifft if inverse else torch.fft.fft
        return torch.view_as_real(turn(torch.view_as_complex(x.contiguous()), dim=axis))

    @staticmethod
    def symbolic(graph: Any, x: Any, axis: int, inverse: bool) -> Any:
        """The node of opset 17."""
        return graph.op("DFT", x, axis_i=axis, inverse_i=int(inverse)).setType(x.type())


def _dft(x: Tensor, axis: int, inverse: bool) -> Tensor:
    made: Tensor = cast("Any", _Dft).apply(x, axis, inverse)  # newer torch types it, older does not
    return made
