"""Side effects of a steering vector: what it does to the perplexity of text that has nothing to do with it.

By them a vector gets the strength that an intervention has by default. Knows a decoder and token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fovea.api.steering import SideEffect, SteeringLayer
from shared.lm.decoder import Decoder
from shared.lm.interventions import Add
from shared.lm.taps import trace
from shared.registry import CallContext

PROSE = (
    "The harbour lies at the mouth of a wide river. Every morning the fishing boats return before seven, and the crews "
    "carry their crates to the market hall. A clerk weighs the fish, writes the weight on a slate, and calls the "
    "price. By noon the hall is empty and the floor has been washed. In the afternoon the men repair their nets, "
    "paint the hulls, or sleep until the evening tide brings them out to sea again."
)
"""Plain text that no vector is about."""

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)

MOST_RISE = 1.5
"""Perplexity at the default strength, relative to the model's own: on SmolLM2 text is still fluent there."""

_MOST_PERPLEXITY = 1e9


def choose_layer(layers: list[SteeringLayer]) -> SteeringLayer:
    """The layer that separates the prompts best; among equals the one with the longest vector per activation."""
    return max(layers, key=lambda one: (one.separation, one.norm / max(one.activation_norm, 1e-9)))


def measure_side_effects(
    model: Decoder, ids: list[int], at: SteeringLayer, direction: Tensor, run: CallContext
) -> tuple[float, list[SideEffect]]:
    """The default strength of a direction [D] in one layer, and the perplexity of a text at each strength tried.

    Raises:
        Cancelled, DeadlineExceeded: Between two strengths.
    """
    unit = direction / max(at.norm, 1e-9) * at.activation_norm
    found = []
    for strength in (0.0, *STRENGTHS):
        run.check()
        edits = [Add(f"resid_post.{at.layer}", (strength * unit)[None, None])] if strength else []
        found.append(SideEffect(strength=strength, perplexity=_perplexity(model, ids, edits)))
    most = MOST_RISE * found[0].perplexity
    fitting = [one.strength for one in found[1:] if one.perplexity <= most]
    return max(fitting, default=STRENGTHS[0]), found


@torch.inference_mode()
def _perplexity(model: Decoder, ids: list[int], edits: list[Add]) -> float:
    rows = torch.tensor([ids], device=model.output_matrix.device)
    logprobs = trace(model, rows, edits=edits).logits[0, :-1].float().log_softmax(-1)
    loss = -logprobs.gather(1, rows[0, 1:, None]).mean()
    return min(float(loss.exp().nan_to_num(_MOST_PERPLEXITY)), _MOST_PERPLEXITY)
