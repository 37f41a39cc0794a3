"""A tiny random model, and its folder. Settles nothing as it is imported: tests of a card use it, too."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from shared.lm.builders import llama
from shared.lm.decoder import Decoder
from shared.lm.lora import LoraAdapter, build_adapter
from shared.lm.lora_config import LoraConfig

CONTEXT = 192
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def tiny_decoder(seed: int = 3, positions: int = CONTEXT) -> Decoder:
    """A random Llama that says varied things: its logits are wide, and no end token is likely."""
    torch.manual_seed(seed)
    model = llama(
        vocab=272, width=32, layers=2, heads=4, kv_heads=2, hidden=48, positions=positions, norm_eps=1e-5, tied=False
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.6 / parameter.shape[1] ** 0.25)
        model.lm_head.weight[256:] *= 0.05
    return model.requires_grad_(requires_grad=False)


def random_decoder(make: Callable[[], Decoder], spread: float = 0.3) -> Decoder:
    """A decoder of any family whose random parameters are spread, so that what it says varies."""
    torch.manual_seed(1)
    net = make().eval().requires_grad_(requires_grad=False)
    for parameter in net.parameters():
        parameter.copy_(parameter + spread * torch.randn_like(parameter) / parameter.shape[-1] ** 0.25)
    return net


def random_adapter(net: Decoder, ranks: Mapping[str, int], seed: int, name: str, scale: float = 0.5) -> LoraAdapter:
    """A random adapter on the named places of every layer."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for layer, block in enumerate(net.blocks):
        for place, rank in ranks.items():
            out, inner = block.get_submodule(place).weight.shape
            stem = f"base_model.model.model.layers.{layer}.{place}.lora"
            tensors[f"{stem}_A.weight"] = torch.randn(rank, inner, generator=draw) / inner**0.5
            tensors[f"{stem}_B.weight"] = torch.randn(out, rank, generator=draw) * scale
    return build_adapter(LoraConfig(8, 8.0, False, ranks, ranks, tuple(ranks)), tensors, net, name)


def write_folder(folder: Path, *, template: str | None = CHAT, positions: int = CONTEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: x.contiguous() for k, x in tiny_decoder().state_dict().items()}, folder / "model.safetensors")
    facts = {
        "model_type": "llama", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_theta": 10000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}))
    return folder
