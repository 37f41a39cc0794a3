"""The decoder against official implementations; its builders and angles, weights nobody reads, the layout of oneDNN."""

from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.lm import builders
from shared.lm.builders import gpt2, llama
from shared.lm.config import DecoderConfig, from_official
from shared.lm.decoder import Decoder
from shared.lm.mapped_weights import release_clean_pages
from shared.lm.onednn_ops import PackedOps, is_packable, pack_ops
from shared.lm.ops import TORCH
from shared.lm.rope import frequencies, rotation
from shared.lm.taps import Scale, trace
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
BASES = {"full_attention": 1e6, "sliding_attention": 1e4}
ROPES = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in BASES.items()}
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


@pytest.mark.parametrize("case", ["llama, biases", "llama 3 rope", "qwen3", "gemma3, untied, stretched", "gpt2"])
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


SIZES = {"vocab": 20, "width": 12, "layers": 2, "heads": 3, "hidden": 16, "positions": 32}


def test_gpt2_has_no_position_behind_its_table():
    model = builders.gpt2(**SIZES)
    assert model(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 32, 20)
    with pytest.raises(ValueError, match="32 positions, not 33"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_angles_are_float32_in_every_dtype():
    theta = frequencies(DecoderConfig("llama", 8, 12, 2, 4, 2, 8, 8, 64, 1e-5, tied=True, rope_theta=100.0))
    assert theta.dtype == torch.float32
    far = torch.tensor([60_001])
    narrow, wide = (rotation(theta, far, dtype)[0].flatten() for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(narrow.float(), wide, atol=4e-3, rtol=0)
    assert rotation(theta, far, torch.float64)[0].dtype == torch.float64


SIZE = 4 * 2**20


def test_clean_pages_are_given_back_and_read_again_and_written_ones_stay(tmp_path):
    for name, value in (("clean", 3.0), ("written", 5.0)):
        save_file({"w": torch.full((SIZE // 4,), value)}, tmp_path / name)
    clean, written = (load_file(tmp_path / name)["w"] for name in ("clean", "written"))
    assert float(clean.sum() + written.sum()) == 8.0 * SIZE / 4
    written[7] = 11.0
    assert SIZE <= release_clean_pages(tmp_path) < 2 * SIZE
    assert release_clean_pages(tmp_path) == 0
    assert (float(clean[7]), float(written[7]), float(written[8])) == (3.0, 11.0, 5.0)
    assert release_clean_pages(tmp_path / "elsewhere") == 0


PACKABLE = {"vocab": 50, "width": 48, "layers": 3, "heads": 4, "hidden": 80, "positions": 256}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EXACT, LAST_BIT = {"atol": 0.0, "rtol": 0.0}, {"atol": 1e-5, "rtol": 2**-7}
TILED = torch.cpu._is_amx_tile_supported()


def small(dtype=torch.float32):
    torch.manual_seed(0)
    return llama(**PACKABLE, kv_heads=2).to(dtype).requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 7, 64, 65, 200])
def test_a_packed_decoder_has_the_logits_of_the_plain_one(dtype, rows):
    model, ids = small(dtype), torch.randint(50, (1, rows))
    ops = pack_ops(model)
    assert isinstance(ops, PackedOps)
    torch.testing.assert_close(model(ids, ops=ops), model(ids), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(576, 192), (576, 1536), (1536, 576), (64, 96)])
def test_a_row_does_not_depend_on_how_many_others_there_are(dtype, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(*shape, bias=shape[0] == 64).to(dtype).requires_grad_(requires_grad=False)
    ops, x = PackedOps([layer]), torch.randn(1, 600, shape[0]).to(dtype)
    (whole,) = ops.products(x, [layer])
    torch.testing.assert_close(whole, layer(x), atol=TOLERANCE[dtype], rtol=0)
    for size in (64, 77, 128, 448):
        (part,) = ops.products(x[:, :size], [layer])
        torch.testing.assert_close(part, whole[:, :size], **(LAST_BIT if TILED and dtype == torch.bfloat16 else EXACT))
        assert (part != whole[:, :size]).float().mean() < 1e-3, "roundings, no other sums"


def test_what_onednn_does_not_serve_is_left_to_torch():
    assert pack_ops(small(torch.float64)) is TORCH
    assert not is_packable(small(torch.float64))
    assert is_packable(small())
    model = gpt2(vocab=50, width=48, layers=2, heads=4, hidden=80, positions=64).eval()
    assert pack_ops(model) is TORCH, "its products are not behind the seam"


def test_a_reading_that_keeps_no_logits_fills_the_cache_and_is_tapped_as_any_other():
    model, ids = small(), torch.randint(50, (1, 30))
    caches = [model.new_cache() for _ in range(2)]
    assert model(ids, cache=caches[0], keep=0).shape == (1, 0, 50)
    model(ids, cache=caches[1])
    for layer in range(3):
        one, other = (cache.write(layer, *[torch.zeros(1, 0, 2, 12)] * 2, 30) for cache in caches)
        assert all(map(torch.equal, one, other))
    model, ids = small(), torch.randint(50, (1, 9))
    found = trace(model, ids, capture=["mlp_out.2"], edits=[Scale("z.2", 0.0)], keep=0)
    assert found["mlp_out.2"].shape == (1, 9, 48)
