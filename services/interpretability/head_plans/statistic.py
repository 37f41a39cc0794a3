"""Means of queries and keys before rotation: Duo's untrained statistic, and TriAttention's query centres.

The statistic is how far back each head would look if all its queries and keys were their mean ("DuoAttention" (2024),
section 5). Only a head's preference for positions is left then: heads that look nearby can
stream, heads that look far retrieve. Knows nothing about experiments or how plans are used.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from shared.lm.decoder import Decoder
from shared.lm.head_plan import QueryCentres
from shared.lm.host_transfer import to_device, to_host
from shared.lm.rope import Rotation, rotate
from shared.lm.taps import trace

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
    turns = cast("list[Rotation]", net.rotations(torch.arange(positions, device=device), torch.float64))
    reach = []
    for turn, parts in zip(turns, _read_unrotated(net, ids), strict=True):
        means = (part.double().mean(1, keepdim=True) for part in parts)
        queries, keys = (rotate(mean.expand(-1, positions, -1, -1), turn)[0] for mean in means)
        last = queries[-1]
        grouped = last.view(config.kv_heads, -1, last.shape[-1])
        pattern = (grouped @ keys.transpose(0, 1).mT * last.shape[-1] ** -0.5).softmax(-1)
        reach.append(1 - pattern.flip(-1).cumsum(-1).mean(-1).mean(-1))
    return to_host(torch.stack(reach))


@torch.no_grad()
def query_centres(net: Decoder, texts: Sequence[Sequence[int]]) -> QueryCentres:
    """Means of each query head's queries before rotation, over several texts.

    After Mao et al. 2026 (arXiv 2604.04921): pairs of channels (i, i + d/2) are complex numbers q; the centre is the
    mean of q, its size the mean of |q|. Raises InvalidOption for a GPT-2, whose positions are trained.
    """
    config, device = net.config, net.output_matrix.device
    sums = torch.zeros(3, config.layers, config.heads, config.head_dim // 2, dtype=torch.float64, device=device)
    for ids in texts:
        for l, (q, _) in enumerate(_read_unrotated(net, ids)):
            pairs = q[0].double().reshape(len(ids), config.heads, 2, -1)
            sums[:, l] += torch.stack((*pairs.sum(0).unbind(1), pairs.norm(dim=-2).sum(0)))
    means = to_host(sums / max(sum(map(len, texts)), 1)).float()
    real, imag, size = (
        [[[float(f"{x:.4g}") for x in row] for row in rows] for rows in table.tolist()] for table in means
    )
    return QueryCentres(real=real, imag=imag, size=size)


def _read_unrotated(net: Decoder, ids: Tensor | Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Queries [1,S,H,d] and keys [1,S,G,d] of each layer, behind the norm per head that Qwen 3 and Gemma 3 have."""
    if net.config.path == "gpt2":
        detail = "This kind turns mean queries and keys, and this model's positions are not rotary."
        raise InvalidOption(detail, hint="Use kind=razor.", field="kind")
    names = [f"{part}.{l}" for l in range(net.config.layers) for part in "qk"]
    run = trace(net, to_device(ids, net.output_matrix.device)[None], capture=names, keep=1)
    return [block.apply_positions(run[f"q.{l}"], run[f"k.{l}"], None) for l, block in enumerate(net.blocks)]
