"""The registry: models in folders, small ones next to each other, full-size ones alone."""

import json

import pytest
import torch

from fovea.errors import NotFound, NotReady
from services.interpretability.core.model_registry import TINY, ModelRegistry
from services.interpretability.experiments.attention import AttentionPatterns
from services.interpretability.tests.conftest import WEIGHTS, ask, write_gpt2
from shared.registry import LoadContext
from tests.golden import read_golden

FACTS = json.loads((WEIGHTS / "tiny_gpt2.json").read_text())


@pytest.fixture
def registry(tmp_path):
    weights = read_golden(WEIGHTS / "tiny_gpt2_weights.arrays")
    tensors = {key: torch.from_numpy(weights[key]) for key in weights}
    for name in ("gpt2-tiny", "gpt2-other"):
        write_gpt2(tmp_path / "weights" / name, FACTS["network"]["config"], tensors)
    return ModelRegistry(tmp_path / "cache", tmp_path / "weights", "smollm2", "float32", "cpu")


def test_folder_under_the_weights_is_studied_by_its_name(registry, tmp_path):
    subject = registry.get("gpt2-tiny")
    last = subject.model(subject.tensor(FACTS["clean_ids"]))[:, -1]
    torch.testing.assert_close(last, torch.tensor(FACTS["clean_last_logits"]), atol=1e-4, rtol=0)
    context = LoadContext(cache=tmp_path, weights=tmp_path / "weights", threads=1)
    report = ask(AttentionPatterns, context, lm="gpt2-tiny", text=None, ids=FACTS["clean_ids"][0])
    assert report.manifest.model == "gpt2-tiny"


def test_second_full_size_model_is_refused_with_the_list(registry, monkeypatch):
    monkeypatch.setattr("services.interpretability.core.model_registry.SMALL_MODEL_BYTES", 0)
    registry.get("gpt2-tiny")
    with pytest.raises(NotReady, match="loaded are gpt2-tiny, tiny-induction") as caught:
        registry.get("gpt2-other")
    assert "FOVEA_LLM_MODEL" in caught.value.hint
    assert registry.get(TINY).name == TINY, "the package's own is always there"


def test_unknown_models_are_not_found_and_known_ones_loaded_once(registry):
    assert registry.get_loaded("gpt2-tiny") is None
    assert registry.get("gpt2-tiny") is registry.get("gpt2-tiny") is registry.get_loaded("gpt2-tiny")
    with pytest.raises(NotFound, match="gpt2-other, gpt2-tiny"):
        registry.get("gpt3")
    names = {registry.get(name).name for name in ("gpt2-tiny", "gpt2-other", "tiny")}
    assert names == {"gpt2-tiny", "gpt2-other", TINY}, "small models live next to each other"
