"""The decoder against the official implementations, on random models of odd sizes."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from shared.lm.config import from_official
from shared.lm.decoder import Decoder
from shared.lm.weights import load_decoder, to_official_keys

LLAMA = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA3 = LLAMA | {
    "tie_word_embeddings": True, "sliding_window": 9, "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": ROPES,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama, one kv head, tied": (
        "LlamaConfig", LLAMA | {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    ),
    "llama, no groups": ("LlamaConfig", LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}),
    "llama, biases": ("LlamaConfig", LLAMA | {"attention_bias": True}),
    "llama 3 rope": ("LlamaConfig", LLAMA | {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear rope": (
        "LlamaConfig", LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
    ),
    "qwen2": ("Qwen2Config", LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3Config", LLAMA),
    "gemma3": ("Gemma3TextConfig", GEMMA3),
    "gemma3, untied, stretched": (
        "Gemma3TextConfig",
        GEMMA3 | {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": False, "query_pre_attn_scalar": 40}
        | {"rope_parameters": ROPES | {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}},
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 61, "n_embd": 48, "n_layer": 3, "n_head": 3, "n_positions": 128, "n_inner": 80,
            "bos_token_id": 0, "eos_token_id": 0,
        },
    ),
}  # fmt: skip


def theirs(case: str) -> Any:
    return make_official(*CASES[case])


def make_official(config_name: str, facts: dict[str, Any]) -> Any:
    """A random official model whose biases and norms are not trivial."""
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**facts)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            centre = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape))
    return model


def ours(model: Any) -> Decoder:
    config = from_official(model.config.to_dict())
    decoder = Decoder(config).eval()
    missing = decoder.load_state_dict(to_official_keys(model.state_dict(), config), strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert not missing.unexpected_keys
    return decoder


def ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(0, 61, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_prefill_in_chunks_and_sixteen_steps_equal_the_official_models(case):
    model = theirs(case)
    decoder, text = ours(model), ids(2, 40)
    known, cache = model(text).logits, decoder.new_cache(2, room=8)
    chunks = [decoder(chunk, cache=cache) for chunk in (text[:, :11], text[:, 11:24])]
    steps = [decoder(text[:, t : t + 1], cache=cache) for t in range(24, 40)]
    torch.testing.assert_close(torch.cat([*chunks, *steps], 1), known, atol=1e-4, rtol=1e-4)
    assert cache.length == 40


@pytest.mark.parametrize("case", ["llama", "qwen2", "gpt2", "gemma3"])
@torch.no_grad()
def test_rows_of_unequal_lengths_equal_the_rows_alone(case):
    model = theirs(case)
    decoder, text, pad = ours(model), ids(3, 20), torch.tensor([0, 7, 13])
    cache = decoder.new_cache(3)
    logits = torch.cat([decoder(text[:, :17], cache=cache, pad=pad), decoder(text[:, 17:], cache=cache)], 1)
    for row, left in enumerate(pad.tolist()):
        known = model(text[row : row + 1, left:]).logits
        torch.testing.assert_close(logits[row : row + 1, left:], known, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_folder_is_read_whole_and_in_shards(case, tmp_path):
    model = theirs(case)
    text = ids(1, 9)
    for size in ("1GB", "20KB"):
        folder = tmp_path / size
        model.save_pretrained(folder, max_shard_size=size)
        assert (folder / "model.safetensors.index.json").exists() == (size == "20KB")
        with torch.no_grad():
            torch.testing.assert_close(load_decoder(folder)(text), model(text).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_float64_model_runs_in_float64_where_the_official_norms_and_angles_are_float32():
    model = theirs("llama")
    decoder, text = ours(model).double(), ids(1, 30)
    assert decoder(text).dtype == torch.float64
    torch.testing.assert_close(decoder(text), model.double()(text).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bfloat16_rounds_no_more_than_the_official_model():
    model, text = theirs("llama"), ids(4, 30)
    decoder, wide = ours(model), model(text).logits

    def error(narrow: Tensor) -> float:
        assert narrow.dtype == torch.bfloat16
        return float((narrow.float() - wide).norm() / wide.norm())

    assert error(decoder.bfloat16()(text)) < 1.1 * error(model.bfloat16()(text).logits)
