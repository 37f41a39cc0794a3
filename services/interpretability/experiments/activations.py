"""Activations experiment: named activations of a text as arrays, under the names of TransformerLens or of modules.

The arrays load with `numpy.load`, without pickles. Knows one text; measures nothing.
"""

import math

import numpy as np
from pydantic import Field

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import NPZ, Artefact, Report, Scalar, Table, heat_map, pack_arrays
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.rendering.render import ACTIVATIONS
from shared.lm.activation_names import SITES, UNLAYERED_SITES
from shared.lm.hook_names import Naming, from_hook_name, to_hook_name, to_module_path
from shared.lm.taps import trace
from shared.registry import Paper

MAX_BYTES = 16 * 2**20
"""Bytes of all arrays of one answer."""


class ActivationsSpec(Spec):
    """Text, and the activations that are wanted."""

    text: str = Field(min_length=1, max_length=100_000, description="The text.")
    names: list[str] = Field(
        default_factory=lambda: ["z", "resid_post"],
        min_length=1,
        max_length=1024,
        description="Sites (z.3, final; z is that of all layers) or hook points (blocks.3.attn.hook_z).",
    )
    naming: Naming = Field(
        "transformerlens", description="Names of the arrays: hook points, module paths (nnsight), or our sites."
    )


class Activations(Experiment[ActivationsSpec]):
    """Hands out activations under the names that other tools have for them."""

    In = ActivationsSpec
    mode = "sync"
    route = "activations"
    card = probe_card(
        "activations",
        "Returns named activations of a text as NPZ, under TransformerLens' hook points or module paths.",
        Paper(
            title="TransformerLens: hook points",
            venue="GitHub",
            year=2022,
            url="https://github.com/TransformerLensOrg/TransformerLens",
        ),
        "Values are those of the raw weights: TransformerLens must not fold norms or centre matrices.",
        "An array keeps the batch axis: one text, [1, tokens, …].",
        text="kqzwxm kqzwx",
        names=["z", "blocks.1.attn.hook_pattern"],
    )

    def cost(self, spec: ActivationsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(subject.encode(spec.text)))

    def run(self, spec: ActivationsSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = subject.encode(spec.text)
        named = _name_sites(spec, subject)
        _check_size(named, subject, len(ids))
        traced = trace(subject.model, subject.tensor([ids]), capture=named, keep=1)
        arrays = {name: traced[site].float().cpu().numpy() for site, name in named.items()}
        sizes = {"tokens": len(ids), "arrays": len(named), "bytes": sum(array.nbytes for array in arrays.values())}
        rows = [[name, site, "×".join(map(str, arrays[name].shape))] for site, name in named.items()]
        return Report(
            title="Activations",
            scalars={name: Scalar(value=value) for name, value in sizes.items()},
            tables=[Table(name="arrays", columns=["name", "site", "shape"], rows=rows, caption="Arrays of the file.")],
            grids=[
                heat_map(
                    "size",
                    [_token_norms(arrays[name], site) for site, name in named.items()],
                    ("site", named),
                    ("token", [span.text for span in subject.token_spans(ids)]),
                    "Root mean square of each activation at each token.",
                )
            ],
            artefacts=[Artefact.of(ACTIVATIONS, pack_arrays({"ids": np.array([ids])} | arrays), NPZ)],
        )


def _name_sites(spec: ActivationsSpec, subject: StudiedModel) -> dict[str, str]:
    """Site → name of its array; `InvalidOption` if there is no such activation, or it has no name in that naming."""
    config, sites = subject.model.config, []
    for name in spec.names:
        every = name in SITES and name not in UNLAYERED_SITES
        sites += [f"{name}.{l}" for l in range(config.layers)] if every else [from_hook_name(name, config)]
    rename = {"transformerlens": to_hook_name, "modules": to_module_path}.get(spec.naming)
    found = {site: rename(site, config) if rename else site for site in sites}
    if unnamed := [site for site, name in found.items() if name is None]:
        detail = f"{unnamed[0]} of {subject.name} has no name in {spec.naming}."
        raise InvalidOption(detail, hint="Leave it out, or ask for naming fovea.", field="names")
    return {site: str(name) for site, name in found.items()}


def _check_size(named: dict[str, str], subject: StudiedModel, T: int) -> None:
    config = subject.model.config
    widths = {"B": 1, "T": T, "S": T, "H": config.heads, "G": config.kv_heads, "d": config.head_dim, "D": config.width}
    size = sum(4 * math.prod(widths[axis] for axis in SITES[site.partition(".")[0]]) for site in named)
    if size > MAX_BYTES:
        detail = f"These activations have {size:,} bytes; at most {MAX_BYTES:,} are returned."
        raise TooLarge(detail, hint="Ask for fewer sites or layers, or a shorter text.", field="names")


def _token_norms(array: np.ndarray, site: str) -> list[float]:
    """Root mean square per token, of an array [1,T,…] or a pattern [1,H,T,S]."""
    by_token = np.moveaxis(array[0], 1, 0) if SITES[site.partition(".")[0]].startswith("BH") else array[0]
    finite = np.where(np.isfinite(by_token), by_token, 0.0).reshape(len(by_token), -1)
    sizes: list[float] = np.sqrt((finite.astype(np.float64) ** 2).mean(1)).tolist()
    return sizes
