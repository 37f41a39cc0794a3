"""Which models can be studied: the package's own, and a user's GPT-2 folder, one full-size model per process."""

import numpy as np
import pytest
import torch

from fovea.errors import NotFound, NotReady
from services.interpretability.causal.patching import path_patch
from services.interpretability.core.model_registry import TINY, ModelRegistry
from services.interpretability.experiments.circuits import logit_difference
from services.interpretability.tests.conftest import WEIGHTS, load_golden, read, write_gpt2
from tests.golden import read_golden


def gpt2_folder(folder):
    weights = read_golden(WEIGHTS / "tiny_gpt2_weights.arrays")
    tensors = {key: torch.from_numpy(weights[key]) for key in weights}
    return write_gpt2(folder, read("tiny_gpt2_circuit.json")["config"], tensors, letters=64)


@pytest.fixture
def registry(tmp_path):
    gpt2_folder(tmp_path / "weights" / "gpt2-tiny")
    gpt2_folder(tmp_path / "weights" / "gpt2-other")
    return ModelRegistry(tmp_path / "cache", tmp_path / "weights", "smollm2", "float32", "cpu")


def test_folder_under_the_weights_is_studied_by_its_name(registry):
    subject = registry.get("gpt2-tiny")
    golden = load_golden("gpt2")
    facts = golden.facts["path_patching"]["final_residual|pos=-1|freeze_mlps=False"]
    found = path_patch(subject.model, golden.clean, golden.corrupt, golden.answers, positions=-1)
    assert np.abs(found.patched - facts["patched_logit_diff"]).max() < 1e-4
    assert found.clean == pytest.approx(facts["clean_logit_diff"], abs=1e-4)
    assert logit_difference(subject.model(golden.clean)[:, -1], golden.answers) == pytest.approx(found.clean, abs=1e-5)


def test_second_full_size_model_is_refused_with_the_list(registry, monkeypatch):
    monkeypatch.setattr("services.interpretability.core.model_registry.SMALL_MODEL_BYTES", 0)
    registry.get("gpt2-tiny")
    with pytest.raises(NotReady, match="loaded are gpt2-tiny, tiny-induction") as caught:
        registry.get("gpt2-other")
    assert "FOVEA_LLM_MODEL" in caught.value.hint
    assert registry.get(TINY).name == TINY, "the package's own is always there"


def test_unknown_model_is_not_found_and_names_may_be_shortened(registry):
    with pytest.raises(NotFound, match="gpt2-other, gpt2-tiny"):
        registry.get("gpt3")
    names = {registry.get(name).name for name in ("gpt2-tiny", "gpt2-other", "tiny")}
    assert names == {"gpt2-tiny", "gpt2-other", TINY}, "small models live next to each other"


def test_model_is_loaded_once_however_many_ask(registry):
    assert registry.get_loaded("gpt2-tiny") is None
    assert registry.get("gpt2-tiny") is registry.get("gpt2-tiny") is registry.get_loaded("gpt2-tiny")
