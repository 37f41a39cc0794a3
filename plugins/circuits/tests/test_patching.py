"""Patching: goldens of two independent implementations, equality with whole edited forwards, and families of models."""

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from fovea_circuits import patching
from fovea_circuits.activation_cache import run_with_cache
from fovea_circuits.experiments import circuits
from fovea_circuits.patching import ablate, ablation_values, attribute_logits
from fovea_circuits.simplified_attention import SimplifiedAttention
from plugins.circuits.tests.conftest import load_golden, read
from shared.lm.taps import Replace, Uniform, trace

SETTINGS = sorted(read("tiny_gpt2_circuit.json")["path_patching"])


def receivers_of(facts):
    return facts["receivers"] if facts["receivers"] == "final" else [tuple(r) for r in facts["receivers"]]


def patched(golden, facts, **more):
    told = {"receivers": receivers_of(facts), "positions": facts["position"], "freeze_mlps": facts["freeze_mlps"]}
    return circuits.path_patch(*golden.given, **told, **more)


@pytest.mark.parametrize("setting", SETTINGS)
def test_path_patching_equals_the_golden_one(golden, setting):
    facts = golden.facts["path_patching"][setting]
    found = patched(golden, facts)
    expected, effect = (np.array(facts[k], float) for k in ("patched_logit_diff", "normalised_effect"))
    assert found.clean == pytest.approx(facts["clean_logit_diff"], abs=1e-4)
    assert found.corrupt == pytest.approx(facts["corrupt_logit_diff"], abs=1e-4)
    assert (np.isnan(found.patched) == np.isnan(expected)).all()
    assert np.nanmax(np.abs(found.patched - expected)) < 1e-4
    assert np.nanmax(np.abs(found.effect - effect)) < 1e-3


@pytest.mark.parametrize("setting", SETTINGS[::5])
def test_one_head_per_forward_equals_all_of_a_layer(golden, setting):
    facts = golden.facts["path_patching"][setting]
    one, many = patched(golden, facts, batch=1), patched(golden, facts)
    assert np.allclose(one.patched, many.patched, atol=1e-5, equal_nan=True)


def naive(model, clean, corrupt, answers, sender, receivers, positions=None, *, freeze_mlps=False):
    L, H = model.config.layers, model.config.heads
    names = [f"{s}.{l}" for s in ("z", "mlp_out") for l in range(L)]
    own, other = (trace(model, ids, capture=names) for ids in (clean, corrupt))
    edits = []
    for l in range(L):
        for h in range(H):
            source = other if (l, h) == sender else own
            edits.append(Replace(f"z.{l}", source[f"z.{l}"], heads=h, positions=positions))
        if freeze_mlps:
            edits.append(Replace(f"mlp_out.{l}", own[f"mlp_out.{l}"], positions=positions))
    sites = ["final"] if receivers == "final" else sorted({f"{part}.{l}" for l, part, _ in receivers})
    recorded = trace(model, clean, edits=edits, capture=sites)
    if receivers == "final":
        inserted = [Replace("final", recorded["final"], positions=positions)]
    else:
        inserted = [Replace(f"{p}.{l}", recorded[f"{p}.{l}"], heads=h, positions=positions) for l, p, h in receivers]
    return circuits.logit_difference(trace(model, clean, edits=inserted).logits[:, -1], answers)


@pytest.mark.parametrize("positions", ["all", [3, 7], [-1, 5]])
@pytest.mark.parametrize("receivers", ["final", [(2, "q", 1), (1, "v", 0), (2, "k", 1)]])
@pytest.mark.parametrize("freeze", [False, True])
def test_path_patching_equals_two_whole_forwards(golden, positions, receivers, freeze):
    found = circuits.path_patch(*golden.given, receivers=receivers, positions=positions, freeze_mlps=freeze)
    for sender in ((0, 1), (0, 3)):
        where = None if positions == "all" else positions
        assert found.patched[sender] == pytest.approx(
            naive(*golden.given, sender, receivers, where, freeze_mlps=freeze), abs=1e-5
        )


def test_sender_that_says_the_same_has_no_effect(golden):
    found = circuits.path_patch(golden.model, golden.clean, golden.clean.clone(), golden.answers)
    assert np.allclose(found.patched, found.clean, atol=1e-5)
    assert np.isnan(found.effect).all(), "no difference between the runs: the effect is undefined"


@pytest.mark.parametrize("bad", [[(9, "q", 0)], [(1, "z", 0)], [(1, "q", 4)], []])
def test_receivers_that_do_not_exist_are_refused(golden, bad):
    with pytest.raises(InvalidOption) as caught:
        circuits.path_patch(*golden.given, receivers=bad)
    assert caught.value.field == "receivers"


def test_groups_and_positions_that_do_not_exist_are_refused(golden):
    llama = load_golden("llama")
    with pytest.raises(InvalidOption, match="groups 0…1"):
        circuits.path_patch(llama.model, llama.clean, llama.corrupt, llama.answers, receivers=[(1, "k", 2)])
    with pytest.raises(InvalidOption, match="position 12"):
        circuits.path_patch(*golden.given, positions=12)


@pytest.mark.parametrize("positions", ["all", "-1"])
def test_activation_patching_equals_the_golden_one(golden, positions):
    found = circuits.activation_patch(*golden.given, positions=("all" if positions == "all" else -1))
    assert np.abs(found - golden.facts["activation_patching_z_logit_diff"][positions]).max() < 1e-4


def test_denoising_is_noising_the_other_way_round(golden):
    found = circuits.activation_patch(*golden.given, denoise=True)
    swapped = circuits.activation_patch(golden.model, golden.corrupt, golden.clean, golden.answers)
    assert np.allclose(found, swapped)


@pytest.mark.parametrize(("kind", "name"), [("zero", "zero"), ("uniform", "uniform_attention"), ("mean", "mean")])
def test_ablation_equals_the_golden_one(golden, kind, name):
    found = circuits.ablate(golden.model, golden.clean, golden.answers, kind=kind)
    assert np.abs(found - golden.facts[f"{name}_ablation_logit_diff"]).max() < 1e-4


def test_attribution_equals_the_golden_one_and_adds_up(golden):
    found = circuits.direct_logit_attribution(golden.model, golden.clean, golden.answers)
    assert np.abs(found - golden.facts["direct_logit_attribution_last_pos"]).max() < 1e-4
    whole = attribute_logits(run_with_cache(golden.model, golden.clean), golden.answers)
    assert whole.total == pytest.approx(whole.actual, abs=1e-5)


def test_pattern_scores_equal_the_golden_ones(golden):
    facts = golden.facts["head_scores_repeated_sequence"]
    found = circuits.head_patterns(golden.model, facts["ids"][: len(facts["ids"]) // 2])
    told = ("previous_token", "duplicate_token", "induction", "first_token_mass", "entropy_mean")
    for ours, theirs in zip(("previous", "duplicate", "induction", "first", "entropy"), told, strict=True):
        assert np.abs(found[ours] - facts[theirs]).max() < 1e-5


@pytest.mark.parametrize("case", read("circuit_overlap.json")["cases"])
def test_overlaps_equal_the_golden_ones(case):
    first, second = (np.array(case[side], float) for side in ("first", "second"))
    for facts in case["results"]:
        found = circuits.overlap(list(first), list(second), facts["fraction"])
        assert ([list(h) for h in found.shared], len(found.union)) == (facts["shared"], facts["union_size"])
        told = tuple(facts[name] for name in ("jaccard", "coefficient", "share_of_first"))
        assert (found.jaccard, found.coefficient, found.share) == pytest.approx(told, abs=1e-9)


def test_undefined_heads_are_never_chosen():
    assert circuits.top_heads([[np.nan, 0.0], [np.nan, np.nan]], 1.0) == [(0, 1)]


def test_every_rerun_is_the_plain_forward_with_one_head_replaced(model, family_prompts):
    run = run_with_cache(model, family_prompts[0])
    for layer in range(run.layers):
        torch.testing.assert_close(run.run_from(layer, run.pre[layer]), run.last)
        torch.testing.assert_close(run.run_from_mid(layer, run.mid[layer]), run.last)
    clean, corrupt, answers = family_prompts
    found = patching.activation_patch(model, clean, corrupt, answers)
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        other = trace(model, corrupt, capture=[f"z.{layer}"])[f"z.{layer}"]
        logits = trace(model, clean, edits=[Replace(f"z.{layer}", other, heads=head)]).logits[:, -1]
        assert found[layer, head] == pytest.approx(patching.logit_difference(logits, answers), abs=1e-9)


@pytest.mark.parametrize("receivers", ["final", [(2, "q", 1), (1, "v", 0), (2, "k", 1)]])
def test_path_patching_is_two_whole_forwards(model, family_prompts, receivers):
    found = patching.path_patch(model, *family_prompts, receivers=receivers)
    assert found.patched[0, 2] == pytest.approx(naive(model, *family_prompts, (0, 2), receivers), abs=1e-9)


def test_attributions_sum_to_the_logit_difference_and_patching_is_its_slope(model, family_prompts):
    found = patching.attribute_logits(run_with_cache(model, family_prompts[0]), family_prompts[2])
    assert found.total == pytest.approx(found.actual, abs=1e-9)
    assert np.abs(found.heads).max() > 1e-3
    clean, corrupt, answers = family_prompts
    estimated = patching.attribution_patch(model, clean, corrupt, answers)
    run, other, step = run_with_cache(model, clean), run_with_cache(model, corrupt), 1e-6
    near = [z + step * (there - z) for z, there in zip(run.z, other.z, strict=True)]
    moved = (patching.patch_heads(run, near, answers) - patching.logit_difference(run.last, answers)) / step
    np.testing.assert_allclose(moved, estimated, rtol=1e-3, atol=1e-5)


def test_uniform_mixing_is_over_what_a_layer_sees_and_no_heads_are_the_models_own(model, family_prompts):
    for heads in ([], range(4)):
        attend = SimplifiedAttention("uniform", [(0, head) for head in heads], windows=model.config.windows)
        expected = trace(model, family_prompts[0], edits=[Uniform(0, heads)] if heads else []).logits
        torch.testing.assert_close(model(family_prompts[0], attend=attend), expected)


def test_ablations_take_what_a_layer_sees_and_never_a_prompts_own_values(model, family_prompts):
    clean, _, answers = family_prompts
    run = run_with_cache(model, clean)
    hidden = [trace(model, clean, edits=[Uniform(layer)], capture=[f"z.{layer}"]) for layer in range(3)]
    for layer, z in enumerate(ablation_values(run, "uniform")):
        torch.testing.assert_close(z, hidden[layer][f"z.{layer}"])
    for seed in range(8):
        z = ablation_values(run, "resample", seed)[0]
        assert sorted(z[:, -1, 0, 0].tolist()) == sorted(run.z[0][:, -1, 0, 0].tolist())
        assert not any(torch.equal(z[i], run.z[0][i]) for i in range(3))
    with pytest.raises(InvalidOption, match="one only"):
        ablate(model, clean[:1], answers[:1], kind="resample")
