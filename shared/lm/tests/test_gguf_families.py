"""GGUF files of Gemma 3, Qwen 2.5 and Qwen 3 hold what their folders hold, and speak SentencePiece where they must."""

import gguf
import numpy as np
import pytest
import torch

from fovea.errors import BadInput, Malformed
from shared.lm.config import from_official
from shared.lm.gguf_file import unpack
from shared.lm.tests.conftest import write_gguf
from shared.lm.tests.test_lm_parity import make_official
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder, read_config

SMALL = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
}  # fmt: skip
FAMILIES = {
    "gemma3": ("Gemma3TextConfig", SMALL | {"num_hidden_layers": 7, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "qwen2": ("Qwen2Config", SMALL | {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", SMALL),
}
BYTES = [f"<0x{i:02X}>" for i in range(256)]
PIECES = ["▁", "a", "b", "c", "n", "t", "▁a", "▁c", "at", "▁cat", "an", "▁an", "▁▁"]
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", *BYTES, *PIECES]
TYPES = [3, 3, 3, 2, 3, *[6] * 256, *[1] * (len(PIECES) - 1), 4]
CHAT = "{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}"


def theirs(arch):
    name, facts = FAMILIES[arch]
    return make_official(name, facts | {"vocab_size": len(TOKENS)})


def write(file, model, arch, **facts):
    """As llama.cpp's converter: its names from the gguf package, and norms of Gemma with the 1 added."""
    c = from_official(model.config.to_dict())
    more = {
        "key_length": c.head_dim, "value_length": c.head_dim, "tokenizer_model": "llama", "tokenizer_pre": "default",
        "token_list": TOKENS, "token_types": TYPES, "bos_token_id": 2, "eos_token_id": 1, "unk_token_id": 3,
        "token_scores": [0.0] * 261 + [-float(i) for i in range(len(PIECES))], "add_bos_token": True,
        "add_space_prefix": False, "chat_template": CHAT,
    }  # fmt: skip
    more |= {"sliding_window": 6} if arch == "gemma3" else {}
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), c.layers)
    tensors = {
        names.get_name(key, (".weight", ".bias")): np.ascontiguousarray(
            (x + (arch == "gemma3" and key.endswith("norm.weight"))).numpy()
        )
        for key, x in model.state_dict().items()
        if key != "lm_head.weight" or not c.tied
    }
    write_gguf(file, arch, c, more, tensors, **{f"{arch}__{name}": value for name, value in facts.items()})


@pytest.mark.parametrize("arch", FAMILIES)
@torch.no_grad()
def test_a_gguf_file_equals_its_folder_and_the_official_model(tmp_path, arch):
    model, text = theirs(arch), torch.randint(0, len(TOKENS), (2, 40), generator=torch.Generator().manual_seed(0))
    write(tmp_path / "m.gguf", model, arch)
    model.save_pretrained(tmp_path / "folder")
    unpacked = unpack(tmp_path / "m.gguf", tmp_path / "cache")
    assert read_config(unpacked) == read_config(tmp_path / "folder")
    read, twin = load_decoder(unpacked), load_decoder(tmp_path / "folder")
    torch.testing.assert_close(read(text), twin(text))
    torch.testing.assert_close(read(text), model(text).logits, atol=1e-4, rtol=1e-4)
    cache = read.new_cache(2)
    steps = [read(piece, cache=cache) for piece in (text[:, :24], *text[:, 24:].split(1, dim=1))]
    torch.testing.assert_close(torch.cat(steps, 1), model(text).logits, atol=1e-4, rtol=1e-4)


def test_gemmas_windows_bases_and_scale_come_from_its_facts_and_soft_capping_is_refused(tmp_path):
    write(tmp_path / "m.gguf", theirs("gemma3"), "gemma3", rope__freq_base_swa=2e4, attention__scale=0.25)
    config = read_config(unpack(tmp_path / "m.gguf", tmp_path))
    assert config.windows == (6, 6, 6, 6, 6, None, 6)
    assert (config.local_theta, config.rope_theta, config.query_scale) == (2e4, 1e6, 16)
    write(tmp_path / "m.gguf", theirs("gemma3"), "gemma3", final_logit_softcapping=30.0)
    with pytest.raises(BadInput, match="soft-capping"):
        load_decoder(unpack(tmp_path / "m.gguf", tmp_path))


def test_sentencepiece_merges_by_score_spells_in_bytes_and_keeps_what_a_user_added(tmp_path):
    write(tmp_path / "m.gguf", theirs("gemma3"), "gemma3")
    tokenizer = Tokenizer.from_folder(unpack(tmp_path / "m.gguf", tmp_path))

    def pieces(text):
        return [TOKENS[i] for i in tokenizer.encode(text)]

    assert pieces("a cat") == ["<bos>", "a", "▁cat"]
    assert pieces(" ant can") == ["<bos>", "▁an", "t", "▁c", "an"], "▁c is joined before an"
    assert pieces("a  c") == ["<bos>", "a", "▁▁", "c"]
    assert pieces("é") == ["<bos>", "<0xC3>", "<0xA9>"]
    assert pieces("<start_of_turn>a") == ["<bos>", "<start_of_turn>", "a"]
    for text in ("a cat", " an  é cat", "c\na"):
        assert tokenizer.decode(tokenizer.encode(text), special=False) == text
    assert tokenizer.chat([{"role": "user", "content": "a"}]) == "<start_of_turn>a"


def test_a_sentencepiece_vocabulary_without_scores_is_malformed(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_scores", lambda _self, _scores: None)
    write(tmp_path / "m.gguf", theirs("gemma3"), "gemma3")
    with pytest.raises(Malformed, match="scores"):
        unpack(tmp_path / "m.gguf", tmp_path)
