"""Steering vectors by contrastive activation addition: the mean difference of residual streams (Rimsky et al., 2023).

Per layer `mean(positive) - mean(negative)` of `resid_post`, at the last token or over all tokens of each prompt, and
how well that direction tells its own prompts apart. Knows a decoder and token ids; knows nothing about storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fovea.api.steering import SteeringLayer
from shared.lm.decoder import Decoder
from shared.lm.taps import trace
from shared.registry import CallContext


def compute_directions(
    model: Decoder,
    positive: Sequence[Sequence[int]],
    negative: Sequence[Sequence[int]],
    layers: Sequence[int],
    tokens: Literal["last", "mean"],
    run: CallContext,
) -> tuple[dict[int, Tensor], list[SteeringLayer]]:
    """Compute the direction of each layer, and what is known of it.

    Args:
        model: The decoder.
        positive: Prompts that show what is wanted, as token ids.
        negative: Prompts that show the opposite.
        layers: Whose residual stream behind the layer.
        tokens: Which tokens of a prompt count.
        run: Deadline, cancellation and progress.

    Returns:
        Directions [D] float32 by layer, and a line of facts each.

    Raises:
        Cancelled, DeadlineExceeded: Between two prompts.
    """
    found, lengths = list[Tensor](), list[Tensor]()
    for number, ids in enumerate([*positive, *negative]):
        run.check()
        run.progress(number / (len(positive) + len(negative)))
        rows = _read_streams(model, ids, layers)
        found.append(rows[:, -1] if tokens == "last" else rows.mean(1))
        lengths.append(rows.norm(dim=-1))
    typical = torch.cat(lengths, 1).median(1).values
    wanted, opposite = torch.stack(found[: len(positive)]), torch.stack(found[len(positive) :])
    directions = wanted.mean(0) - opposite.mean(0)
    facts = [
        SteeringLayer(
            layer=layer,
            norm=float(directions[i].norm()),
            activation_norm=float(typical[i]),
            separation=_separation(wanted[:, i] @ directions[i], opposite[:, i] @ directions[i]),
        )
        for i, layer in enumerate(layers)
    ]
    return {layer: directions[i] for i, layer in enumerate(layers)}, facts


@torch.inference_mode()
def _read_streams(model: Decoder, ids: Sequence[int], layers: Sequence[int]) -> Tensor:
    """Residual streams [layers, tokens, D] of one prompt.

    Without its first token, if it has another: where everybody's attention rests, activations are hundreds of times as
    long as elsewhere (massive activations, Sun et al. 2024) and say nothing about the text.
    """
    sites = [f"resid_post.{layer}" for layer in layers]
    found = trace(model, torch.tensor([list(ids)], device=model.output_matrix.device), capture=sites, keep=1)
    return torch.stack([found[site][0, min(1, len(ids) - 1) :].float() for site in sites]).cpu()


def _separation(wanted: Tensor, opposite: Tensor) -> float:
    """Share of pairs whose wanted one lies further along (AUC); ties count half."""
    difference = wanted[:, None] - opposite[None]
    return float((difference > 0).float().mean() + (difference == 0).float().mean() / 2)
