"""Names of sites in other libraries: hook points of TransformerLens, and module paths (nnsight, hooks of PyTorch).

`z.3` is `blocks.3.attn.hook_z` in the one, `model.layers.3.self_attn.o_proj.input` in the other. Values are equal where
TransformerLens loads weights without processing (its default since 4.0). Knows names; knows no tensor.
"""

import re
from collections.abc import Collection
from typing import Literal

from shared.lm.activation_names import SITES, InvalidTap, parse_site
from shared.lm.config import DecoderConfig

Naming = Literal["fovea", "transformerlens", "modules"]
"""Naming of activations: our sites, TransformerLens' hook points, or module paths of the official implementation."""

HOOK_POINTS = (
    {site: f"hook_{site}" for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")}
    | {site: f"attn.hook_{site}" for site in ("q", "k", "v")}
    | {"q_rot": "attn.hook_rot_q", "k_rot": "attn.hook_rot_k", "scores": "attn.hook_attn_scores"}
    | {site: f"attn.hook_{site}" for site in ("pattern", "z")}
)
"""Site of a layer → hook point of a block."""

_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")

_MODULES = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    **{site: (f"self_attn.{site}_proj", "output") for site in ("q", "k", "v")},
    "z": ("self_attn.o_proj", "input"),
    "attn_out": ("self_attn.o_proj", "output"),
    "mlp_out": ("mlp", "output"),
}
"""Site of a layer → module and side, in the Llama-like families; heads are joined there: [B,T,H·d]."""

_AROUND = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
"""Where Gemma 3 has a norm between a part and the residual stream, the norm's output is what is added."""

_GPT2_MODULES = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    "z": ("attn.c_proj", "input"),
    "attn_out": ("attn.c_proj", "output"),
    "mlp_out": ("mlp", "output"),
}


def to_hook_name(site: str, config: DecoderConfig) -> str | None:
    """Return TransformerLens' name of a site, or None where it has none with these values; `InvalidTap` for no site.

    GPT-2's `embed` is the sum of two hook points there, and so is named `blocks.0.hook_resid_pre`.
    """
    found = parse_site(site, config)
    if found.name == "embed":
        return "blocks.0.hook_resid_pre" if config.path == "gpt2" else "hook_embed"
    if found.name == "final":
        return f"blocks.{config.layers - 1}.hook_resid_post"
    if found.name == "normed":
        return "ln_final.hook_out"
    if found.name in {"q_rot", "k_rot"} and config.path == "gpt2":
        return None
    # Another scale of the scores than 1/sqrt(d) is in our rotated queries, and not in theirs.
    if found.name == "q_rot" and config.query_scale not in {None, config.head_dim}:
        return None
    point = HOOK_POINTS.get(found.name)
    return None if point is None else f"blocks.{found.layer}.{point}"


def from_hook_name(name: str, config: DecoderConfig, among: Collection[str] = tuple(SITES)) -> str:
    """Return the site, `among` those, that TransformerLens calls `name`, or `name` if it is one; else `InvalidTap`."""
    match, sites = _HOOK.fullmatch(name), {point: site for site, point in HOOK_POINTS.items() if site in among}
    if match and match[2] in sites:
        name = f"{sites[match[2]]}.{match[1]}"
    elif name == "ln_final.hook_out":
        name = "normed"
    elif match or name.startswith("hook_"):
        if name != "hook_embed" or config.path == "gpt2":
            known = ", ".join(f"blocks.<layer>.{point}" for point in sites)
            detail = f"There is no hook point {name!r} here; there are hook_embed (not in GPT-2), {known}."
            raise InvalidTap(detail, field=name)
        name = "embed"
    parse_site(name, config, among)
    return name


def to_module_path(site: str, config: DecoderConfig) -> str | None:
    """Return the module path and side of a site, `model.layers.3.self_attn.o_proj.input`; None where it has none.

    These are the paths of the official implementation in `transformers`, which nnsight reads as attributes. Raises
    InvalidTap if this model has no such site.
    """
    found, gpt2 = parse_site(site, config), config.path == "gpt2"
    if found.name == "final":
        return "transformer.ln_f.input" if gpt2 else "model.norm.input"
    if found.name == "normed":
        return "transformer.ln_f.output" if gpt2 else "model.norm.output"
    module, side = (_GPT2_MODULES if gpt2 else _MODULES).get(found.name, (None, ""))
    if module is None:
        return None
    if config.path == "gemma3":
        module = _AROUND.get(found.name, module)
    layer = f"{'transformer.h' if gpt2 else 'model.layers'}.{found.layer}"
    return ".".join(filter(None, (layer, module, side)))
