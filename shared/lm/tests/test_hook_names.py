"""Hook names: against module hooks of transformers, and refusals."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.lm.activation_names import SITES, UNLAYERED_SITES, InvalidTap
from shared.lm.builders import gemma3, gpt2, llama
from shared.lm.decoder import Decoder
from shared.lm.hook_names import from_hook_name, to_hook_name, to_module_path
from shared.lm.taps import trace

SIZES = {"vocab": 30, "width": 16, "layers": 2, "heads": 4, "hidden": 24, "positions": 32}
MAKERS = {
    "gpt2": lambda: gpt2(**SIZES),
    "llama": lambda: llama(**SIZES, kv_heads=2, head_dim=6, norm_eps=1e-6),
    "qwen3": lambda: llama(**SIZES, kv_heads=2, head_dim=6, norm_eps=1e-6, qk_norm=True),
    "gemma3": lambda: gemma3(**SIZES, kv_heads=2, head_dim=6, window=5, every=2, query_scale=9.0),
}
IDS = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(0))


def make(family: str) -> Decoder:
    torch.manual_seed(0)
    model = MAKERS[family]()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    model.load_state_dict(model.state_dict())  # ties again
    return model.eval()


def sites(model: Decoder) -> list[str]:
    return [
        name
        for site in SITES
        for name in ([site] if site in UNLAYERED_SITES else [f"{site}.{l}" for l in range(model.config.layers)])
    ]


@pytest.mark.parametrize("family", MAKERS)
def test_names_lead_back_to_the_site(family):
    model = make(family)
    named = {site: to_hook_name(site, model.config) for site in sites(model) if site not in {"embed", "final"}}
    for site, name in named.items():
        assert name is None or from_hook_name(name, model.config) == site
    assert len(set(filter(None, named.values()))) == len(list(filter(None, named.values())))
    assert from_hook_name("z.1", model.config) == "z.1"


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.hook_nothing", "blocks.2.attn.hook_z", "hook_pos_embed", "nothing", "z.01"]
)
def test_unknown_hook_points_are_refused_by_name(name):
    with pytest.raises(InvalidTap):
        from_hook_name(name, make("llama").config)


@pytest.mark.parametrize("family", MAKERS)
def test_activations_under_module_paths_are_those_of_transformers(family):
    official = pytest.importorskip("transformers")
    model = make(family)
    config = model.config
    twin = _official(official, family, config).eval()
    twin.load_state_dict(model.state_dict(), strict=False)
    wanted = {path: site for site in sites(model) if (path := to_module_path(site, config))}
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
        twin(IDS)
    ours = trace(model, IDS, capture=wanted.values())
    for path, site in wanted.items():
        torch.testing.assert_close(ours[site].reshape(seen[path].shape), seen[path], atol=1e-4, rtol=1e-4, msg=path)


def _official(official: Any, family: str, config: Any) -> Any:
    if family == "gpt2":
        facts = official.GPT2Config(
            vocab_size=config.vocab, n_embd=config.width, n_layer=config.layers, n_head=config.heads,
            n_positions=config.positions, n_inner=config.hidden, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return official.GPT2LMHeadModel(facts)
    shared = {
        "vocab_size": config.vocab, "hidden_size": config.width, "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads, "head_dim": config.head_dim,
        "num_key_value_heads": config.kv_heads, "max_position_embeddings": config.positions,
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tied, "pad_token_id": 0,
    }  # fmt: skip
    if family == "gemma3":
        rope = {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        more = {"layer_types": kinds, "sliding_window": 5, "query_pre_attn_scalar": 9, "rope_parameters": rope}
        return official.Gemma3ForCausalLM(official.Gemma3TextConfig(**shared, **more))
    name = {"llama": "Llama", "qwen3": "Qwen3"}[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return getattr(official, f"{name}ForCausalLM")(getattr(official, f"{name}Config")(**shared, rope_parameters=rope))
