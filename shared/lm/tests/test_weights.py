"""Reading model files: what is taken, what is refused, and that GGUF files and folders hold the same models."""

import json
import pickle
import string
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fovea.errors import BadInput, Malformed, NotFound, UnsupportedMedia
from shared.lm import builders
from shared.lm.config import DecoderConfig, RopeScaling, from_official
from shared.lm.gguf_file import unpack
from shared.lm.tests.conftest import write_gguf
from shared.lm.tests.test_decoder import make_official
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder, read_config, read_tensors, to_official_keys, weights_digest

FACTS = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 500.0,
}  # fmt: skip


def llama(**facts):
    torch.manual_seed(0)
    model = builders.llama(
        vocab=40, width=32, layers=2, heads=4, kv_heads=2, hidden=64, positions=64, rope_theta=500.0, norm_eps=1e-6,
        **{"tied": True} | facts,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tiny"
    place.mkdir()
    save_file(llama().state_dict(), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(FACTS))
    return place


GEMMA = {
    "model_type": "gemma3_text", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 7,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "sliding_window": 5, "query_pre_attn_scalar": 8, "rope_theta": 1e6,
    "rope_local_base_freq": 2e4,
}  # fmt: skip
TEXT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def test_a_folder_gives_back_its_model(folder):
    read = load_decoder(folder)
    assert torch.equal(read(TEXT), llama()(TEXT))
    assert not read.training
    assert not any(p.requires_grad for p in read.parameters())
    assert load_decoder(folder, torch.bfloat16)(TEXT).dtype == torch.bfloat16


def test_the_digest_names_the_weights(folder):
    first = weights_digest(folder)
    assert first == weights_digest(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: x + 1 for k, x in tensors.items()}, folder / "model.safetensors")
    assert weights_digest(folder) != first


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_and_never_opened(folder, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UnsupportedMedia, match="pickle"):
        load_decoder(folder)
    with pytest.raises(UnsupportedMedia, match="refused"):
        read_tensors(folder / name)


def test_npz_and_safetensors_hold_the_same_and_objects_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{}], dtype=object))
    with pytest.raises(Malformed, match=r"w\.npz"):
        read_tensors(tmp_path / "w.npz")
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.float32)}
    np.savez(tmp_path / "w.npz", **arrays)
    save_file({k: torch.from_numpy(a) for k, a in arrays.items()}, tmp_path / "w.safetensors")
    for file in ("w.npz", "w.safetensors"):
        read = {k: x.tolist() for k, x in read_tensors(tmp_path / file).items()}
        assert read == {k: a.tolist() for k, a in arrays.items()}


def test_broken_files_are_malformed(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(Malformed, match="safetensors"):
        load_decoder(folder)
    for text, says in (("[1]", "object"), ("{", "JSON")):
        (folder / "config.json").write_text(text)
        with pytest.raises(Malformed, match=says):
            load_decoder(folder)


def test_missing_files_are_not_found_and_a_shard_outside_the_folder_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        load_decoder(folder)
    with pytest.raises(NotFound, match=r"config\.json"):
        load_decoder(tmp_path)
    with pytest.raises(NotFound, match="no file"):
        unpack(tmp_path / "none.gguf", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(Malformed, match="outside"):
        load_decoder(folder)


@pytest.mark.parametrize(("change", "says"), [
    (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
    (lambda t: t.update(extra=torch.ones(1)), "extra is not part"),
    (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"\[3\] where the config says \[32\]"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder, change, says):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Malformed, match=says):
        load_decoder(folder)


@pytest.mark.parametrize(("facts", "says"), [
    ({"model_type": "mamba"}, "mamba"), ({"hidden_act": "gelu"}, "hidden_act"), ({"mlp_bias": True}, "mlp_bias"),
    ({"model_type": "mistral", "sliding_window": 16}, "sliding_window"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"), ({"num_key_value_heads": 3}, "evenly"),
    ({"num_hidden_layers": 0}, "layers"), ({"head_dim": 7}, "even"), ({"hidden_size": None}, "TypeError"),
    (GEMMA | {"final_logit_softcapping": 30.0}, "soft-capping"), (GEMMA | {"hidden_activation": "relu"}, "relu"),
    (GEMMA | {"head_dim": 7}, "even"),
])  # fmt: skip
def test_what_the_decoder_has_no_form_for_is_refused(facts, says):
    with pytest.raises(BadInput, match=says):
        from_official(FACTS | facts)


def test_older_files_of_gemma_say_the_pattern_by_a_number_and_the_local_base_by_a_name():
    config = from_official(GEMMA)
    assert (config.windows, config.local_theta, config.rope_theta) == ((5, 5, 5, 5, 5, None, 5), 2e4, 1e6)
    assert from_official({"model_type": "gemma3", "text_config": GEMMA}) == config


def test_a_config_names_a_missing_fact_and_old_and_new_ropes_are_read_alike():
    with pytest.raises(BadInput, match="intermediate_size"):
        from_official({k: v for k, v in FACTS.items() if k != "intermediate_size"})
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = from_official(FACTS | {"rope_scaling": {"type": "llama3", **scaling}})
    new = from_official(FACTS | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **scaling}})
    assert old == new
    assert new.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


def test_bare_gpt2_files_get_their_prefix_lose_their_buffers_and_stay_tied():
    config = DecoderConfig("gpt2", 8, 4, 1, 2, 2, 2, 8, 16, 1e-5, tied=True)
    bare = {"wte.weight": 0, "h.0.attn.bias": 0, "h.0.attn.masked_bias": 0, "h.0.attn.c_attn.bias": 0}
    whole = {"transformer.ln_f.weight": 0, "lm_head.weight": 0}
    found = to_official_keys({k: torch.zeros(1) for k in bare | whole}, config)
    assert set(found) == {"transformer.wte.weight", "transformer.h.0.attn.c_attn.bias", "transformer.ln_f.weight"}
    model = builders.gpt2(vocab=8, width=4, layers=1, heads=2, hidden=8, positions=16)
    state = {k: x.clone() for k, x in model.state_dict().items()}
    for given in (state, {k: x for k, x in state.items() if k != "lm_head.weight"}):
        for assign in (False, True):
            model.load_state_dict({k: x.clone() for k, x in given.items()}, strict=False, assign=assign)
            assert model.lm_head.weight is model.transformer.wte.weight
    assert model.double().lm_head.weight is model.transformer.wte.weight


TOKENS = ["<|endoftext|>", "<|im_end|>", *string.ascii_lowercase, "Ġ", *string.digits, "ab"]


def write(file, model, *, arch="llama", pre="smollm", kind="gpt2", tensors=None, **facts):
    words = {
        "tokenizer_model": kind, "tokenizer_pre": pre, "token_list": TOKENS, "eos_token_id": 1,
        "token_types": [3, 3, *[1] * (len(TOKENS) - 2)], "token_merges": ["a b"],
    }  # fmt: skip
    write_gguf(file, arch, model.config, words, tensors or gguf_tensors(model), **facts)


def gguf_tensors(model):
    names, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.layers), {}
    for key, tensor in model.state_dict().items():
        array = tensor.numpy()
        if "q_proj" in key or "k_proj" in key:
            array = interleaved(array, model.config.heads if "q_proj" in key else model.config.kv_heads)
        found[names.get_name(key, (".weight", ".bias"))] = array
    return found


def interleaved(rows, heads):
    """The order in which llama.cpp's converter writes the rows of q and k."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_gives_back_its_model(tmp_path, tied):
    model = llama(tied=tied)
    write(tmp_path / "m.gguf", model)
    folder = unpack(tmp_path / "m.gguf", tmp_path / "cache")
    torch.testing.assert_close(load_decoder(folder)(TEXT), model(TEXT))
    assert unpack(tmp_path / "m.gguf", tmp_path / "cache") == folder, "the second time it is found"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "nothing half-made is left"
    narrow = unpack(tmp_path / "m.gguf", tmp_path / "cache", torch.bfloat16)
    assert load_file(narrow / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_llama_3s_divisors_in_a_gguf_file_stretch_the_angles(tmp_path):
    model = llama(rope_scaling=RopeScaling("table", table=(1.0, 2.0, 4.0, 8.0)))
    table = {"rope_freqs.weight": np.array([1, 2, 4, 8], np.float32)}
    write(tmp_path / "m.gguf", model, tensors=table | gguf_tensors(model))
    read = load_decoder(unpack(tmp_path / "m.gguf", tmp_path))
    torch.testing.assert_close(read(TEXT), model(TEXT))
    assert not torch.allclose(read(TEXT), llama()(TEXT), atol=1e-3)


def test_the_tokenizer_of_a_gguf_file_comes_along(tmp_path):
    write(tmp_path / "m.gguf", llama())
    tokenizer = Tokenizer.from_folder(unpack(tmp_path / "m.gguf", tmp_path))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("abc 12")] == ["ab", "c", " ", "1", "2"]
    assert tokenizer.eos == {0, 1}


@pytest.mark.parametrize(("change", "says"), [
    ({"arch": "mamba"}, "mamba"), ({"kind": "bert"}, "tokenizer of kind 'bert'"), ({"pre": "strange"}, "strange"),
    ({"llama__rope__scaling__type": "yarn"}, "yarn"),
    ({"tensors": {"token_embd.weight": np.zeros((40, 32), "f4"), "blk.0.odd.weight": np.zeros(4, "f4")}}, "odd"),
])  # fmt: skip
def test_gguf_files_we_do_not_read_are_refused(tmp_path, change, says):
    write(tmp_path / "m.gguf", llama(), **change)
    with pytest.raises(UnsupportedMedia, match=says):
        unpack(tmp_path / "m.gguf", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_file_that_is_no_gguf_is_malformed(tmp_path):
    for raw in (b"GGUF" + b"\0" * 50, b""):
        (tmp_path / "m.gguf").write_bytes(raw)
        with pytest.raises(Malformed, match=r"m\.gguf"):
            unpack(tmp_path / "m.gguf", tmp_path)


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
PIECE_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", *BYTES, *PIECES]
TYPES = [3, 3, 3, 2, 3, *[6] * 256, *[1] * (len(PIECES) - 1), 4]
CHAT = "{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}"


def theirs(arch):
    name, facts = FAMILIES[arch]
    return make_official(name, facts | {"vocab_size": len(PIECE_TOKENS)})


def write_family(file, model, arch, **facts):
    """As llama.cpp's converter: its names from the gguf package, and norms of Gemma with the 1 added."""
    c = from_official(model.config.to_dict())
    more = {
        "key_length": c.head_dim, "value_length": c.head_dim, "tokenizer_model": "llama", "tokenizer_pre": "default",
        "token_list": PIECE_TOKENS, "token_types": TYPES, "bos_token_id": 2, "eos_token_id": 1, "unk_token_id": 3,
        "token_scores": [0.0] * 261 + [-float(i) for i in range(len(PIECES))], "add_bos_token": True,
        "add_space_prefix": False, "chat_template": CHAT,
    }  # fmt: skip
    more |= {"sliding_window": 6} if arch == "gemma3" else {}
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), c.layers)
    tensors = {}
    for key, x in model.state_dict().items():
        if key != "lm_head.weight" or not c.tied:
            more_one = arch == "gemma3" and key.endswith("norm.weight")
            tensors[names.get_name(key, (".weight", ".bias"))] = np.ascontiguousarray((x + more_one).numpy())
    write_gguf(file, arch, c, more, tensors, **{f"{arch}__{name}": value for name, value in facts.items()})


@pytest.mark.parametrize("arch", FAMILIES)
@torch.no_grad()
def test_a_gguf_file_equals_its_folder_and_the_official_model(tmp_path, arch):
    model, text = theirs(arch), torch.randint(0, len(PIECE_TOKENS), (2, 40), generator=torch.Generator().manual_seed(0))
    write_family(tmp_path / "m.gguf", model, arch)
    model.save_pretrained(tmp_path / "folder")
    unpacked = unpack(tmp_path / "m.gguf", tmp_path / "cache")
    assert read_config(unpacked) == read_config(tmp_path / "folder")
    read, twin = load_decoder(unpacked), load_decoder(tmp_path / "folder")
    torch.testing.assert_close(read(text), twin(text))
    torch.testing.assert_close(read(text), model(text).logits, atol=1e-4, rtol=1e-4)


def test_gemmas_windows_bases_and_scale_come_from_its_facts_and_soft_capping_is_refused(tmp_path):
    write_family(tmp_path / "m.gguf", theirs("gemma3"), "gemma3", rope__freq_base_swa=2e4, attention__scale=0.25)
    config = read_config(unpack(tmp_path / "m.gguf", tmp_path))
    assert config.windows == (6, 6, 6, 6, 6, None, 6)
    assert (config.local_theta, config.rope_theta, config.query_scale) == (2e4, 1e6, 16)
    write_family(tmp_path / "m.gguf", theirs("gemma3"), "gemma3", final_logit_softcapping=30.0)
    with pytest.raises(BadInput, match="soft-capping"):
        load_decoder(unpack(tmp_path / "m.gguf", tmp_path))


def test_sentencepiece_merges_by_score_spells_in_bytes_and_keeps_what_a_user_added(tmp_path):
    write_family(tmp_path / "m.gguf", theirs("gemma3"), "gemma3")
    tokenizer = Tokenizer.from_folder(unpack(tmp_path / "m.gguf", tmp_path))

    def pieces(text):
        return [PIECE_TOKENS[i] for i in tokenizer.encode(text)]

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
    write_family(tmp_path / "m.gguf", theirs("gemma3"), "gemma3")
    with pytest.raises(Malformed, match="scores"):
        unpack(tmp_path / "m.gguf", tmp_path)


def test_a_decoder_without_weights_does_not_import_torchs_compiler():
    """For random numbers of tensors that have no memory torch imports it and sympy: 75 MB, and a second."""
    program = (
        "import sys\n"
        "from shared.lm.config import from_official\n"
        "from shared.lm.weights import build_without_weights\n"
        f"model = build_without_weights(from_official({FACTS}))\n"
        "print(model.output_matrix.device, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "meta False\n"
