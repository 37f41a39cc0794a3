"""BMN, and BMN with class-semantics attention: where in a video something begins, ends, and how sure that is.

Knows the maths of both papers and the layout of the public BMN checkpoint, key for key. Knows nothing of videos:
inputs are features, outputs sigmoids. CSA has no published code; its inside is our reading of the paper.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.errors import InvalidOption
from fovea_actions.segments.proposals import cells, sampling_mask
from shared.registry import builder

GROUPS = 4


@builder("bmn")
class BoundaryMatching(nn.Module):
    """BMN (Lin et al., ICCV 2019): boundaries per cell, and a confidence for every pair of start and end.

    Sampling and the 3-D convolution are both linear, so they are done in the order that costs less: first the
    convolution's weights on the features, then the fixed sampling weights, and only where start <= end. That takes a
    sixth of the multiplications of the published order at full size, and never holds the (512, 32, t, t) samples.

    A video has `length` cells t of `features` channels c. A proposal has `samples`, each the mean of `samples_per_bin`
    points, and they reach `ratio` of its length beyond it. `hidden` are channels of the 1-D, 2-D and 3-D convolutions.
    The defaults are the public layout.
    """

    ballast: int
    """Bytes of the sampling mask, which public checkpoints hold besides the weights."""

    sampling: Tensor
    places: Tensor

    def __init__(
        self,
        features: int = 400,
        length: int = 100,
        samples: int = 32,
        samples_per_bin: int = 3,
        ratio: float = 0.5,
        hidden: tuple[int, int, int] = (256, 128, 512),
    ) -> None:
        super().__init__()
        one, two, three = hidden
        self.features, self.length, self.hidden = features, length, hidden
        self.ballast = 4 * samples * length**3
        self.x_1d_b = nn.Sequential(_conv(features, one), nn.ReLU(), _conv(one, one), nn.ReLU())
        self.x_1d_s = _boundary(one)
        self.x_1d_e = _boundary(one)
        self.x_1d_p = nn.Sequential(nn.Conv1d(one, one, 3, padding=1), nn.ReLU())
        self.x_3d_p = nn.Sequential(nn.Conv3d(one, three, (samples, 1, 1)), nn.ReLU())
        self.x_2d_p = nn.Sequential(
            nn.Conv2d(three, two, 1),
            nn.ReLU(),
            nn.Conv2d(two, two, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(two, two, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(two, 2, 1),
        )
        starts, ends = (torch.from_numpy(axis) for axis in cells(length))
        mask = torch.from_numpy(sampling_mask(length, samples, samples_per_bin, ratio))
        weights = mask[:, :, starts, ends].transpose(0, 1).reshape(samples * length, -1)
        self.register_buffer("sampling", weights.contiguous(), persistent=False)
        self.register_buffer("places", starts * length + ends, persistent=False)
        self.register_load_state_dict_pre_hook(_forget_sample_mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Confidence (b, 2, s, e) as regression and classification, start (b, t) and end (b, t), from (b, c, t).

        Raises InvalidOption: the features have other channels or another length.
        """
        _fits(x, "x", self.features, self.length)
        return self.maps(x)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` without its size check: what exporters trace."""
        return self._heads(self.x_1d_b(x))

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start, end = (torch.sigmoid(head(features))[:, 0] for head in (self.x_1d_s, self.x_1d_e))
        return torch.sigmoid(self.x_2d_p(self._matched(self.x_1d_p(features)))), start, end

    def _matched(self, features: Tensor) -> Tensor:
        """Boundary-matching layer and 3-D convolution: (b, d, t) → (b, k, s, e)."""
        layer, t = self.x_3d_p[0], self.length
        weight, bias = cast("Tensor", layer.weight)[..., 0, 0], cast("Tensor", layer.bias)  # (k, d, n)
        kernels, _, samples = weight.shape
        projected = torch.matmul(weight.transpose(1, 2).reshape(kernels * samples, -1), features)
        proposals = torch.matmul(projected.reshape(-1, kernels, samples * t), self.sampling)
        flat = proposals.new_zeros(1).expand(proposals.shape[0], kernels, t * t)
        grid = flat.scatter(2, self.places.expand(proposals.shape[0], kernels, -1), proposals)
        return F.relu(grid.reshape(-1, kernels, t, t) + bias[:, None, None])


class ClassSemantics(nn.Module):
    """Attention over channels and over time that is learned from class semantics (CSA, ICCV 2021; our reading).

    Squeeze-and-excitation learns its weights from the features they act on; these come from another source, the
    recogniser's `semantics` channels s of features or posteriors, and are applied to BMN's features of `width` channels
    d.
    """

    def __init__(self, semantics: int, width: int, *, channel: bool, time: bool) -> None:
        super().__init__()
        middle = max(16, width // 8)
        if channel:
            self.channel = nn.Sequential(nn.Linear(3 * semantics, middle), nn.ReLU(), nn.Linear(middle, width))
        if time:
            self.time = nn.Conv1d(semantics, 1, 3, padding=1)

    def forward(self, features: Tensor, semantics: Tensor) -> Tensor:
        """Features (b, d, t) plus themselves times the weights that semantics (b, s, t) gives."""
        attended = features
        if hasattr(self, "channel"):
            mean = semantics.mean(2)
            spread = (semantics - mean[..., None]).square().mean(2).add(1e-12).sqrt()
            pooled = torch.cat((mean, spread, semantics.amax(2)), 1)
            attended = attended + features * torch.sigmoid(self.channel(pooled))[..., None]
        if hasattr(self, "time"):
            attended = attended + features * torch.sigmoid(self.time(semantics))
        return attended


@builder("bmn-csa")
class AttendedBoundaryMatching(BoundaryMatching):
    """BMN, with its `options`, whose features attend to class semantics; with both attentions off it is exactly BMN.

    200 semantics are ActivityNet's classes.
    """

    def __init__(
        self,
        features: int = 400,
        length: int = 100,
        semantics: int = 200,
        *,
        channel: bool = True,
        time: bool = True,
        **options: object,
    ) -> None:
        super().__init__(features, length, **options)  # type: ignore[arg-type]  # BMN's own keywords, passed on
        self.semantics = semantics
        self.csa = ClassSemantics(semantics, self.hidden[0], channel=channel, time=time)

    def forward(self, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # a second input
        """As BMN's, with semantics (b, s, t) next to the features (b, c, t)."""
        _fits(x, "x", self.features, self.length)
        _fits(r, "r", self.semantics, self.length)
        return self.maps(x, r)

    def maps(self, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # a second input
        return self._heads(self.csa(self.x_1d_b(x), r))


def _conv(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1, groups=GROUPS)


def _boundary(width: int) -> nn.Sequential:
    return nn.Sequential(_conv(width, width), nn.ReLU(), nn.Conv1d(width, 1, 1))


def _fits(x: Tensor, name: str, channels: int, length: int) -> None:
    if x.ndim != 3 or tuple(x.shape[1:]) != (channels, length):
        detail = f"{name} must be (batch, {channels}, {length}), not {tuple(x.shape)}."
        raise InvalidOption(detail, hint="Resample the features to this length first.", field=name)


def _forget_sample_mask(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Public checkpoints store the sampling mask (128 MB at 100 cells); ours is generated."""
    state.pop(f"{prefix}sample_mask", None)
