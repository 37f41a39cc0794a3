"""Next-token losses of a decoder: plain, with heads masked, with edits, or with another `attend`."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor
from torch.nn import functional

from services.interpretability.attention.retrieval_score import Head
from shared.lm.decoder import Decoder
from shared.lm.taps import Edit, Uniform, trace


def mask_heads(heads: Iterable[Head], positions: Any = None) -> list[Edit]:
    """Return the edits that make the attention of heads (layer, head) uniform over all visible keys."""
    chosen = sorted(set(heads))
    return [
        Uniform(layer, [head for _, head in of], positions) for layer, of in groupby(chosen, key=lambda head: head[0])
    ]


def position_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the loss of each next token in nats: logits [B,T,V], ids [B,T] → [B,T−1], by a float32 log-softmax."""
    shifted = logits[:, :-1].float()
    return functional.cross_entropy(shifted.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        ids.shape[0], -1
    )


def token_losses(
    model: Decoder, ids: Tensor, *, masked: Iterable[Head] = (), attend: Any = None, edits: Sequence[Edit] = ()
) -> Tensor:
    """Return the losses of tokens 2…T of ids [B,T] under masked heads, edits or an `attend`: [B,T−1]."""
    traced = trace(model, ids, edits=[*mask_heads(masked), *edits], attend=attend)
    return position_losses(traced.logits, ids)
