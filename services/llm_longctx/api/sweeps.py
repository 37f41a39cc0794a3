"""Route of sweeps: `POST /v1/sweeps` patches a prompt's activations one after another and returns the grid.

Knows HTTP, tokens and the grid's form; the patches run in `serving.steering.patch_sweep`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from fastapi import APIRouter, Depends, Request
from torch import Tensor

from fovea.api.sweeps import NextTokens, Sweep, SweepRequest, SweptPrompt, SweptToken
from fovea.api.text import Usage
from fovea.errors import InvalidOption, TooLarge, in_field
from services.llm_longctx.api.model_lookup import find_model
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.chat_template import TemplateOptions
from services.llm_longctx.serving.steering.admission import SCOPE
from services.llm_longctx.serving.steering.build_taps import SERVED_SITES
from services.llm_longctx.serving.steering.patch_sweep import PatchSweep, SweepCell
from shared.lm.activation_names import UNLAYERED_SITES, Site, parse_layer, resolve_indices
from shared.lm.config import DecoderConfig
from shared.lm.hook_names import HOOK_POINTS
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

LAYER_SITES = tuple(site for site in SERVED_SITES if site not in UNLAYERED_SITES)

MAX_FORWARD_TOKENS = 65_536
"""Tokens that one sweep runs through the model, next to other requests."""

router = APIRouter(tags=["steering"], responses=ERROR_RESPONSES)


@router.post("/v1/sweeps", openapi_extra=OPENAI_ERRORS)
async def sweep(body: SweepRequest, request: Request, host: Annotated[Host, Depends(host_of)]) -> Sweep:
    """Patch a grid of activations of one prompt, and look at named next tokens after each patch."""
    run: CallContext = request.scope["fovea.run"]
    run.require_scope(SCOPE, "A sweep")
    adapter = (await find_model(host, body.model, request)).adapter.of_tenant(run.tenant, body.model)
    if not isinstance(adapter, DecoderAdapter) or adapter.engine.runner.team is not None:
        detail = f"The model {adapter.name!r} can't be patched: it has no named activations in this process."
        raise InvalidOption(detail, field="model")
    run.audit = {"act": "sweep", "model": adapter.name, "site": body.site}
    return await host.aside.do(adapter.name, lambda run: _sweep(body, adapter, run), run)


def _sweep(body: SweepRequest, adapter: DecoderAdapter, run: CallContext) -> Sweep:
    config, text = adapter.engine.model.config, adapter.tokenizer.token_text
    ids, tokens = _tokenize(adapter, body.prompt, "prompt"), _find_tokens(adapter, body.tokens)
    source = None if body.source is None else _tokenize(adapter, body.source, "source")
    if source is not None and len(source) != len(ids):
        detail = f"source has {len(source)} tokens and prompt {len(ids)}; they must have as many."
        raise InvalidOption(detail, hint="See where they differ with /tokenize.", field="source")
    sites, positions, heads = _read_grid(body, config, len(ids))
    if body.by == "head":
        grid = [[SweepCell(site, tuple(sorted(positions)), (head,)) for head in heads or ()] for site in sites]
    else:
        chosen = None if heads is None else tuple(heads)
        grid = [[SweepCell(site, (at,), chosen) for at in positions] for site in sites]
    cells = [cell for row in grid for cell in row]
    if (total := sum(len(ids) - cell.positions[0] for cell in cells)) > MAX_FORWARD_TOKENS:
        detail = f"{len(cells):,} patches run {total:,} tokens through the model; {MAX_FORWARD_TOKENS:,} are run."
        raise TooLarge(detail, hint="Name fewer layers, positions or heads.", field="layers")
    ops = adapter.engine.runner.passes.ops([adapter.lora_weights])
    patches = PatchSweep(adapter.engine.model, ops, ids, run)
    plain, clean, values = _look(patches.read(), tokens), None, None
    if source is not None:
        logits, values = patches.capture(source, sites)
        clean = _look(logits, tokens)
    found = {cell: _look(logits, tokens) for cell, logits in patches.patch(cells, values).items()}
    rows = [[found[cell] for cell in row] for row in grid]
    differences = [[one.logit_difference or 0.0 for one in row] for row in rows] if len(tokens) > 1 else None
    return Sweep(
        model=adapter.served_as,
        site=sites[0].name,
        layers=[site.layer for site in sites],
        positions=positions,
        heads=heads,
        by=body.by,
        prompt_tokens=[text(token) for token in ids],
        tokens=[SweptToken(token=text(token), id=token) for token in tokens],
        prompt=plain,
        source=clean,
        logits=[[one.logits for one in row] for row in rows],
        probabilities=[[one.probabilities for one in row] for row in rows],
        logit_difference=differences,
        recovered=_recover(differences, plain, clean),
        forward_tokens=patches.forward_tokens,
        usage=Usage(prompt_tokens=patches.forward_tokens, completion_tokens=0, total_tokens=patches.forward_tokens),
    )


def _read_grid(
    body: SweepRequest, config: DecoderConfig, prompt: int
) -> tuple[list[Site], list[int], list[int] | None]:
    """Sites, one a layer; positions; heads, None for all of a column."""
    name = {point: site for site, point in HOOK_POINTS.items()}.get(body.site, body.site)
    if name not in LAYER_SITES:
        detail = f"There is no site {body.site!r} of a layer; sites are {', '.join(LAYER_SITES)}."
        raise InvalidOption(detail, hint="The layers are those of `layers`.", field="site")
    site, asked = Site(name, 0), range(config.layers) if body.layers is None else body.layers
    with in_field("layers"):
        layers = [parse_layer(layer, config, f"layer {layer}") for layer in asked]
    with in_field("positions"):
        positions = resolve_indices(range(prompt) if body.positions is None else body.positions, prompt, "position")
    count = config.heads if "H" in site.axes else config.kv_heads if "G" in site.axes else 0
    if not count and (body.heads is not None or body.by == "head"):
        raise InvalidOption(f"{site.name} has no heads; z, q, k and v have.", field="site")
    if body.heads is None:
        heads = list(range(count)) if body.by == "head" else None
    else:
        with in_field("heads"):
            heads = resolve_indices(body.heads, count, "head")
    return [Site(site.name, layer) for layer in layers], positions, heads


def _tokenize(adapter: DecoderAdapter, prompt: SweptPrompt, field: str) -> list[int]:
    if isinstance(prompt, str):
        ids = adapter.tokenize(prompt, field)
    elif isinstance(prompt[0], int):
        ids = [token for token in prompt if isinstance(token, int)]
        if max(ids) >= adapter.vocab:
            detail = f"It holds token {max(ids)}; this model's ids are below {adapter.vocab}."
            raise InvalidOption(detail, field=field)
    else:
        messages = [message for message in prompt if not isinstance(message, int)]
        text = adapter.render_chat(messages, TemplateOptions(add_generation_prompt=messages[-1].role != "assistant"))
        ids = adapter.tokenize(text, field, special=False)
    if not ids:
        raise InvalidOption("It has no tokens.", field=field)
    adapter.check_length(ids, field)
    return ids


def _find_tokens(adapter: DecoderAdapter, named: list[str | int]) -> list[int]:
    """Ids of the tokens that are looked at."""
    found = []
    for i, one in enumerate(named):
        ids = [one] if isinstance(one, int) else adapter.tokenize(one, f"tokens[{i}]", special=False)
        if len(ids) != 1 or ids[0] >= adapter.vocab:
            pieces = ", ".join(repr(adapter.tokenizer.token_text(token)) for token in ids if token < adapter.vocab)
            detail = f"{one!r} is not one token of this model" + (f", but {len(ids)}: {pieces}." if pieces else ".")
            raise InvalidOption(detail, hint="Most words begin with a space: ' Mary'.", field=f"tokens[{i}]")
        found += ids
    return found


def _look(logits: Tensor, tokens: list[int]) -> NextTokens:
    """The named tokens of logits [V]."""
    chosen, probabilities = logits[tokens].tolist(), torch.softmax(logits, -1)[tokens].tolist()
    difference = chosen[0] - chosen[1] if len(tokens) > 1 else None
    return NextTokens(logits=chosen, probabilities=probabilities, logit_difference=difference)


def _recover(
    differences: list[list[float]] | None, prompt: NextTokens, source: NextTokens | None
) -> list[list[float]] | None:
    if differences is None or source is None or prompt.logit_difference is None or source.logit_difference is None:
        return None
    begin, way = prompt.logit_difference, source.logit_difference - prompt.logit_difference
    return [[(one - begin) / way if way else 0.0 for one in row] for row in differences]
