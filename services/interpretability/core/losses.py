"""Next-token losses of a decoder: plain, with heads masked, with edits, or with another `attend`."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from services.interpretability.attention.pattern_capture import ROWS_AT_ONCE
from services.interpretability.attention.retrieval_score import Head
from shared.lm.decoder import Decoder
from shared.lm.taps import Edit, Uniform, trace


def mask_heads(heads: Iterable[Head], positions: Any = None) -> list[Edit]:
    """Return the edits that make the attention of heads (layer, head) uniform over all visible keys."""
    by_layer = groupby(sorted(set(heads)), key=lambda head: head[0])
    return [Uniform(layer, [head for _, head in of], positions) for layer, of in by_layer]


@torch.no_grad()
def stream_losses(model: Decoder, stream: Tensor, ids: Tensor) -> Tensor:
    """Return the loss of each next token in nats: final streams [B,T,D], ids [B,T] → [B,T−1], in float32."""
    blocks = (torch.split(part, ROWS_AT_ONCE) for part in (stream[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    rows = ((model.read_logits(x).float(), y) for x, y in zip(*blocks, strict=True))
    losses = [functional.cross_entropy(logits, tokens, reduction="none") for logits, tokens in rows]
    return torch.cat(losses).view(ids.shape[0], -1)


def token_losses(
    model: Decoder, ids: Tensor, *, masked: Iterable[Head] = (), attend: Any = None, edits: Sequence[Edit] = ()
) -> Tensor:
    """Return the losses of tokens 2…T of ids [B,T] under masked heads, edits or an `attend`: [B,T−1]."""
    traced = trace(model, ids, capture=["final"], edits=[*mask_heads(masked), *edits], attend=attend, keep=1)
    return stream_losses(model, traced["final"], ids)
