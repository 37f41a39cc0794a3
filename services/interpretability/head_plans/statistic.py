"""Means of queries and keys before rotation: Duo's untrained statistic, and TriAttention's query centres.

The statistic is how far back each head would look if all its queries and keys were their mean ("DuoAttention" (2024),
section 5). Only a head's preference for positions is left then: heads that look nearby can
stream, heads that look far retrieve. Knows nothing about experiments or how plans are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from shared.lm.attention import sdpa
from shared.lm.config import DecoderConfig
from shared.lm.decoder import Decoder
from shared.lm.head_plan import QueryCentres
from shared.lm.host_transfer import to_device, to_host
from shared.lm.rope import Rotation, frequencies, local_frequencies, rotate, rotation

POSITIONS = 500
"""Positions over which mean keys are laid out."""


@torch.no_grad()
def mean_reach(net: Decoder, ids: Tensor | Sequence[int], positions: int = POSITIONS) -> Tensor:
    """Compute how far back key/value heads look, 0 (newest key only) to 1 (oldest only): [L,G] float64.

    The mean query and the mean key of a head over a text [S], before rotation, are laid out over `positions`; the
    attention of the last query is summed from the newest key on, and the area above that curve, the mean over a group's
    heads, is the reach. Raises InvalidOption for a GPT-2, whose positions are trained.
    """
    config, device = net.config, net.output_matrix.device
    tokens = to_device(ids, device)
    _check_rotary(config)
    reach = torch.zeros(config.layers, config.kv_heads, dtype=torch.float64, device=device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        theta = _frequencies(config, layer, device)
        cos, sin = rotation(theta, torch.arange(len(tokens), device=device), torch.float64)
        back: Rotation = cos, -sin
        query, key = (rotate(x.double(), back).mean(1, keepdim=True) for x in (q, k))
        layout = rotation(theta, torch.arange(positions, device=device), torch.float64)
        keys = rotate(key.expand(-1, positions, -1, -1), layout)[0].transpose(0, 1)
        last = rotate(query.expand(-1, positions, -1, -1), layout)[0, -1]
        grouped = last.view(config.kv_heads, -1, last.shape[-1])
        pattern = (grouped @ keys.mT * last.shape[-1] ** -0.5).softmax(-1)
        reach[layer] = 1 - pattern.flip(-1).cumsum(-1).mean(-1).mean(-1)
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2), window=config.windows[layer] if config.windows else None)

    net(tokens[None], attend=attend, keep=1)
    return to_host(reach)


@torch.no_grad()
def query_centres(net: Decoder, texts: Sequence[Sequence[int]]) -> QueryCentres:
    """Means of each query head's queries before rotation, over several texts.

    After Mao et al. 2026 (arXiv 2604.04921): pairs of channels (i, i + d/2) are complex numbers q; the centre is the
    mean of q, its size the mean of |q|. Raises InvalidOption for a GPT-2, whose positions are trained.
    """
    config, device = net.config, net.output_matrix.device
    _check_rotary(config)
    sums = torch.zeros(3, config.layers, config.heads, config.head_dim // 2, dtype=torch.float64, device=device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        cos, sin = rotation(_frequencies(config, layer, device), torch.arange(q.shape[1], device=device), torch.float64)
        pairs = rotate(q.double(), (cos, -sin))[0].reshape(*q.shape[1:3], 2, -1)
        sums[:, layer] += torch.stack((pairs[:, :, 0].sum(0), pairs[:, :, 1].sum(0), pairs.norm(dim=-2).sum(0)))
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2), window=config.windows[layer] if config.windows else None)

    for ids in texts:
        net(to_device(ids, device)[None], attend=attend, keep=1)
    means = to_host(sums / max(sum(map(len, texts)), 1)).float()
    real, imag, size = (
        [[[float(f"{x:.4g}") for x in row] for row in rows] for rows in table.tolist()] for table in means
    )
    return QueryCentres(real=real, imag=imag, size=size)


def _check_rotary(config: DecoderConfig) -> None:
    if config.path == "gpt2":
        detail = "This kind turns mean queries and keys, and this model's positions are not rotary."
        raise InvalidOption(detail, hint="Use kind=razor.", field="kind")


def _frequencies(config: DecoderConfig, layer: int, device: torch.device) -> Tensor:
    local = config.windows is not None and config.windows[layer] is not None
    return local_frequencies(config, device) if local else frequencies(config, device)
