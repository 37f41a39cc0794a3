"""Families of models: what each lends to experiments, and the registry."""

import numpy as np
import pytest
import torch

from fovea.errors import NotFound, NotReady
from services.interpretability.causal import patching
from services.interpretability.causal.activation_cache import run_with_cache
from services.interpretability.causal.patching import path_patch
from services.interpretability.causal.simplified_attention import SimplifiedAttention
from services.interpretability.core.model_registry import TINY, ModelRegistry
from services.interpretability.experiments.circuits import logit_difference
from services.interpretability.tests.conftest import WEIGHTS, load_golden, read, write_gpt2
from services.interpretability.tests.test_patching import naive
from shared.lm.builders import gemma3, llama
from shared.lm.taps import Replace, Uniform, trace
from tests.golden import read_golden

SIZES = {"vocab": 40, "width": 24, "layers": 3, "heads": 4, "kv_heads": 2, "hidden": 32, "positions": 64}


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def model(request):
    """A random model of the family, far from uniform; Gemma gets windows of four tokens and a layer that sees all."""
    torch.manual_seed(0)
    if request.param == "qwen3":
        made = llama(**SIZES, head_dim=8, qk_norm=True)
    else:
        made = gemma3(**SIZES, head_dim=8, window=4, every=2, query_scale=12.0)
    for parameter in made.parameters():
        parameter.data = 0.4 * torch.randn_like(parameter)
    return made.double().requires_grad_(requires_grad=False).eval()


@pytest.fixture(scope="module")
def prompts():
    draw = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 40, (3, 11), generator=draw)
    corrupt = clean.clone()
    corrupt[:, [2, 8]] = torch.randint(0, 40, (3, 2), generator=draw)
    return clean, corrupt, torch.randint(0, 40, (3, 2), generator=draw)


def test_every_rerun_is_the_plain_forward_with_one_head_replaced(model, prompts):
    run = run_with_cache(model, prompts[0])
    for layer in range(run.layers):
        torch.testing.assert_close(run.run_from(layer, run.pre[layer]), run.last)
        torch.testing.assert_close(run.run_from_mid(layer, run.mid[layer]), run.last)
    clean, corrupt, answers = prompts
    found = patching.activation_patch(model, clean, corrupt, answers)
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        other = trace(model, corrupt, capture=[f"z.{layer}"])[f"z.{layer}"]
        logits = trace(model, clean, edits=[Replace(f"z.{layer}", other, heads=head)]).logits[:, -1]
        assert found[layer, head] == pytest.approx(patching.logit_difference(logits, answers), abs=1e-9)


@pytest.mark.parametrize("receivers", ["final", [(2, "q", 1), (1, "v", 0), (2, "k", 1)]])
def test_path_patching_is_two_whole_forwards(model, prompts, receivers):
    found = patching.path_patch(model, *prompts, receivers=receivers)
    assert found.patched[0, 2] == pytest.approx(naive(model, *prompts, (0, 2), receivers), abs=1e-9)


def test_attributions_sum_to_the_logit_difference_and_patching_is_its_slope(model, prompts):
    found = patching.attribute_logits(run_with_cache(model, prompts[0]), prompts[2])
    assert found.total == pytest.approx(found.actual, abs=1e-9)
    assert np.abs(found.heads).max() > 1e-3
    clean, corrupt, answers = prompts
    estimated = patching.attribution_patch(model, clean, corrupt, answers)
    run, other, step = run_with_cache(model, clean), run_with_cache(model, corrupt), 1e-6
    near = [z + step * (there - z) for z, there in zip(run.z, other.z, strict=True)]
    moved = (patching.patch_heads(run, near, answers) - patching.logit_difference(run.last, answers)) / step
    np.testing.assert_allclose(moved, estimated, rtol=1e-3, atol=1e-5)


def test_uniform_mixing_is_over_what_a_layer_sees_and_no_heads_are_the_models_own(model, prompts):
    for heads in ([], range(4)):
        attend = SimplifiedAttention("uniform", [(0, head) for head in heads], windows=model.config.windows)
        expected = trace(model, prompts[0], edits=[Uniform(0, heads)] if heads else []).logits
        torch.testing.assert_close(model(prompts[0], attend=attend), expected)


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


def test_unknown_models_are_not_found_and_known_ones_loaded_once(registry):
    assert registry.get_loaded("gpt2-tiny") is None
    assert registry.get("gpt2-tiny") is registry.get("gpt2-tiny") is registry.get_loaded("gpt2-tiny")
    with pytest.raises(NotFound, match="gpt2-other, gpt2-tiny"):
        registry.get("gpt3")
    names = {registry.get(name).name for name in ("gpt2-tiny", "gpt2-other", "tiny")}
    assert names == {"gpt2-tiny", "gpt2-other", TINY}, "small models live next to each other"
