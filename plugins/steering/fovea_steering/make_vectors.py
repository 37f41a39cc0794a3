"""Steering vectors by contrastive activation addition: the mean difference of residual streams (Rimsky et al., 2023).

Per layer `mean(positive) - mean(negative)` of `resid_post`, at the last token or over all tokens of each prompt, how
well that direction tells its own prompts apart, and what it does to the perplexity of text that has nothing to do with
it. By the last a vector gets the strength that an intervention has by default. Knows nothing about storage.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import torch
from torch import Tensor

from fovea.api.steering import SideEffect, SteeringLayer, SteeringVector, SteeringVectorRequest
from fovea.api.text import ChatMessage
from fovea.errors import InvalidOption, TooLarge, in_field
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.chat_template import TemplateOptions
from shared.lm.activation_names import parse_layer
from shared.lm.decoder import Decoder
from shared.lm.interventions import Add
from shared.lm.taps import trace
from shared.registry import CallContext

MAX_TOKENS = 32_768
"""Tokens of all prompts of one vector: they are read one after the other, next to what is served."""

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


def make_vector(
    body: SteeringVectorRequest, adapter: DecoderAdapter, run: CallContext
) -> tuple[SteeringVector, dict[int, Tensor]]:
    """Compute a vector, as yet without a version: its facts, and its directions [D] float32 by layer.

    Raises:
        InvalidOption: A layer that the model does not have, a prompt that it can't read, or sides without a difference.
        TooLarge: The prompts are too long together.
        Cancelled, DeadlineExceeded: Between two prompts, or two strengths.
    """
    model, config = adapter.engine.model, adapter.engine.model.config
    middle = range(config.layers // 3, max(2 * config.layers // 3, config.layers // 3 + 1))
    with in_field("layers"):
        layers = sorted({parse_layer(layer, config, f"layer {layer}") for layer in body.layers or middle})
    positive, negative = (
        [read_prompt(adapter, prompt, f"{side}[{i}]") for i, prompt in enumerate(getattr(body, side))]
        for side in ("positive", "negative")
    )
    if (total := sum(map(len, [*positive, *negative]))) > MAX_TOKENS:
        detail = f"The prompts have {total:,} tokens together; {MAX_TOKENS:,} are read."
        raise TooLarge(detail, hint="Send fewer or shorter ones.", field="positive")
    directions, facts = compute_directions(model, positive, negative, layers, body.tokens, run)
    if not any(one.norm for one in facts):
        raise InvalidOption("Both sides have the same activations: there is no direction.", field="negative")
    best, prose = choose_layer(facts), adapter.tokenize(PROSE, "prose")[: config.positions]
    strength, side_effects = measure_side_effects(model, prose, best, directions[best.layer], run)
    vector = SteeringVector(
        id=body.name,
        name=body.name,
        version=0,
        model=adapter.name,
        weights=adapter.engine.runner.weights_sha256[:16],
        width=config.width,
        created=datetime.now(UTC),
        tokens=body.tokens,
        positive=len(body.positive),
        negative=len(body.negative),
        layers=facts,
        layer=best.layer,
        strength=strength,
        side_effects=side_effects,
    )
    return vector, directions


def read_prompt(adapter: DecoderAdapter, prompt: str | Sequence[int | ChatMessage], field: str) -> list[int]:
    """Token ids of a text, of ids, or of a conversation under the model's template.

    Raises:
        InvalidOption: It has no tokens, unknown ones, or messages that the template refuses.
        ContextLengthExceeded: It is too long.
    """
    if isinstance(prompt, str):
        ids = adapter.tokenize(prompt, field)
    elif messages := [one for one in prompt if not isinstance(one, int)]:
        with in_field(field):
            options = TemplateOptions(add_generation_prompt=messages[-1].role != "assistant")
            text = adapter.render_chat(messages, options)
        ids = adapter.tokenize(text, field, special=False)
    else:
        ids = [one for one in prompt if isinstance(one, int)]
    if not ids:
        raise InvalidOption("The prompt has no tokens.", field=field)
    if max(ids) >= adapter.vocab:
        raise InvalidOption(f"It holds token {max(ids)}; this model's ids are below {adapter.vocab}.", field=field)
    adapter.check_length(ids, field)
    return ids


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
    return dict(zip(layers, directions, strict=True)), facts


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


@torch.inference_mode()
def _perplexity(model: Decoder, ids: list[int], edits: list[Add]) -> float:
    rows = torch.tensor([ids], device=model.output_matrix.device)
    logprobs = trace(model, rows, edits=edits).logits[0, :-1].float().log_softmax(-1)
    loss = -logprobs.gather(1, rows[0, 1:, None]).mean()
    return min(float(loss.exp().nan_to_num(_MOST_PERPLEXITY)), _MOST_PERPLEXITY)
