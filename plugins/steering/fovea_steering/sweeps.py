"""Sweeps: a grid of patches of one prompt, from names of sites and tokens to the numbers of the answer.

Knows tokens and the grid's form; the patches run in `patch_sweep`.
"""

from torch import Tensor, softmax

from fovea.api.sweeps import NextTokens, Sweep, SweepRequest, SweptToken
from fovea.api.text import Usage
from fovea.errors import InvalidOption, TooLarge, in_field
from fovea_steering.build_taps import SERVED_SITES
from fovea_steering.make_vectors import read_prompt
from fovea_steering.patch_sweep import PatchSweep, SweepCell
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.lm.activation_names import UNLAYERED_SITES, Site, parse_layer, resolve_indices
from shared.lm.config import DecoderConfig
from shared.lm.hook_names import HOOK_POINTS
from shared.registry import CallContext

LAYER_SITES = tuple(site for site in SERVED_SITES if site not in UNLAYERED_SITES)

MIN_WAY = 1e-6
"""Distance of two logit differences below which no share of it has a meaning."""

MAX_FORWARD_TOKENS = 65_536
"""Tokens that one sweep runs through the model, next to other requests."""


def run_sweep(body: SweepRequest, adapter: DecoderAdapter, run: CallContext) -> Sweep:
    """Patch a grid of activations of one prompt, and look at named next tokens after each patch.

    Raises:
        InvalidOption: A site, layer, position, head, token or prompt that the model does not have.
        TooLarge: The grid takes too long.
        Cancelled, DeadlineExceeded: Between two batches of patches.
    """
    config, text = adapter.engine.model.config, adapter.tokenizer.token_text
    ids, tokens = read_prompt(adapter, body.prompt, "prompt"), _find_tokens(adapter, body.tokens)
    source = None if body.source is None else read_prompt(adapter, body.source, "source")
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
    for field, found in (("layers", layers), ("positions", positions), ("heads", heads or ())):
        if len(set(found)) < len(found):  # -1 and the number of the last are one
            raise InvalidOption(f"{field} names one twice.", hint="Negative ones count from the end.", field=field)
    return [Site(site.name, layer) for layer in layers], positions, heads


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
    chosen, probabilities = logits[tokens].tolist(), softmax(logits, -1)[tokens].tolist()
    difference = chosen[0] - chosen[1] if len(tokens) > 1 else None
    return NextTokens(logits=chosen, probabilities=probabilities, logit_difference=difference)


def _recover(
    differences: list[list[float]] | None, prompt: NextTokens, source: NextTokens | None
) -> list[list[float]] | None:
    if differences is None or source is None or prompt.logit_difference is None or source.logit_difference is None:
        return None
    begin, way = prompt.logit_difference, source.logit_difference - prompt.logit_difference
    if abs(way) < MIN_WAY:
        return None
    return [[(one - begin) / way for one in row] for row in differences]
