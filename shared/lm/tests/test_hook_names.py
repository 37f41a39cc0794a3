"""Hook names: against module hooks of transformers, and refusals."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.lm.activation_names import SITES, UNLAYERED_SITES, InvalidTap
from shared.lm.decoder import Decoder
from shared.lm.hook_names import from_hook_name, to_hook_name, to_module_path
from shared.lm.taps import trace
from shared.lm.tests.test_lm_parity import ids, ours, theirs

FAMILIES = ["gpt2", "llama", "qwen3", "gemma3, untied, stretched"]


def sites(model: Decoder) -> list[str]:
    return [
        name
        for site in SITES
        for name in ([site] if site in UNLAYERED_SITES else [f"{site}.{l}" for l in range(model.config.layers)])
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_lead_back_to_the_site(family):
    model = ours(theirs(family))
    named = {site: to_hook_name(site, model.config) for site in sites(model) if site not in {"embed", "final"}}
    for site, name in named.items():
        assert name is None or from_hook_name(name, model.config) == site
    assert len(set(filter(None, named.values()))) == len(list(filter(None, named.values())))
    assert from_hook_name("z.1", model.config) == "z.1"


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.hook_nothing", "blocks.3.attn.hook_z", "hook_pos_embed", "nothing", "z.01"]
)
def test_unknown_hook_points_are_refused_by_name(name):
    with pytest.raises(InvalidTap):
        from_hook_name(name, ours(theirs("llama")).config)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_under_module_paths_are_those_of_transformers(family):
    twin = theirs(family)
    model, text = ours(twin), ids(2, 9)
    wanted = {path: site for site in sites(model) if (path := to_module_path(site, model.config))}
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: Any, inputs: Any, kwargs: Any, output: Any) -> None:
            value = (inputs[0] if inputs else kwargs["hidden_states"]) if path.endswith("input") else output
            seen[path] = value[0] if isinstance(value, tuple) else value

        return hook

    for path in wanted:
        module = operator.attrgetter(path.rpartition(".")[0])(twin)
        module.register_forward_hook(keep(path), with_kwargs=True)
    with torch.no_grad():
        twin(text)
    found = trace(model, text, capture=wanted.values())
    for path, site in wanted.items():
        torch.testing.assert_close(found[site].reshape(seen[path].shape), seen[path], atol=1e-4, rtol=1e-4, msg=path)
