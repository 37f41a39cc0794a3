"""The oracles of the methods against published masks, selections and outputs; the engine against published logits."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method
from services.llm_longctx.methods.core.oracle import attention_weights, causal_mask
from services.llm_longctx.methods.dhsa import mass_ratios, select_boundaries
from tests.golden import read_golden
from tests.harness.golden_llama import fill_llama

HERE = Path(__file__).parent / "golden"
GOLDEN = read_golden(HERE / "methods_N256.arrays")
LLAMA = read_golden(HERE / "methods_tinyllama.arrays")
Q, K, V = (torch.from_numpy(GOLDEN[name]) for name in "qkv")
ENGINE = read_golden(HERE / "engine_tinyllama.arrays")
IDS = ENGINE["ids"].tolist()
DHSA = {"block": 16, "budget": 48, "global_tokens": 8, "local_tokens": 16, "instruction": 16}
ROLES = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1], [0, 0]]}
HEADS = {"schema": "head-plan/1", "heads": [[0, 0], [0, 3], [1, 0], [1, 3], [2, 1], [2, 2]]}
BORDERS = [0, 9, 20, 26, 41, 48, 66, 75, 90, 97, 113, 120, 137, 144, 160]
FLEX = sorted(name.removeprefix("flex_").removesuffix("_jsd") for name in GOLDEN if name.endswith("_jsd"))


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def near(found, name, tolerance=2e-6):
    assert (found[:, ::4] - golden(name)).abs().max() < tolerance


@pytest.fixture(scope="module")
def golden_llama():
    return fill_llama()


def test_duo_streams_and_mixes_by_gates():
    sink, recent = GOLDEN["duo_sizes"].tolist()
    duo = method("duo", sink=sink, recent=recent)
    answer = duo.reference(Q, K, V)
    assert torch.equal(answer.mask.sum(-1)[0], golden("duo_rows"))
    near(answer.out, "duo_streaming")
    near(duo.reference(Q, K, V, gate=golden("duo_gate")).out, "duo_mixed")


RAZORS = {"paper": {}, "unweighted": {"compensation": "unweighted"}, "nocomp": {"compensation": "none"},
          "goldenstick": {"variant": "capacity"}}  # fmt: skip


@pytest.mark.parametrize(("name", "knobs"), RAZORS.items())
def test_razor_compensates_as_each_reading_says(name, knobs):
    answer = method("razor", sink=4, window_min=64, window_div=5, **knobs).reference(Q[:, -1:], K, V)
    assert (answer.out[:, 0] - golden(f"razor_out_last_{name}")).abs().max() < 2e-6
    if name == "goldenstick":
        assert answer.extras["entries"] == int(GOLDEN["razor_goldenstick_kv_len"])
    else:
        assert answer.extras["n_dropped"] == int(GOLDEN["razor_n_dropped"])
        assert (answer.extras["k_comp"] - golden("razor_k_comp")).abs().max() < 1e-9
        assert (answer.extras["v_comp"] - golden("razor_v_comp")).abs().max() < 1e-9


def test_power_keeps_the_published_blocks():
    answer = method("power", block=16, window=2, sink=1).reference(Q, K, V)
    assert torch.equal(answer.extras["block_mask"], golden("power_blocks"))
    near(answer.out, "power_out")


@pytest.mark.parametrize("threshold", ["0.1", "0.05"])
def test_act_finds_the_published_sinks_and_calibrates_them(threshold):
    answer = method("act", beta=0.4, threshold=float(threshold)).reference(Q, K, V)
    assert answer.extras["sinks"] == json.loads(str(GOLDEN[f"act_sinks_{threshold}"]))
    assert (answer.extras["column_mean"] - golden("act_mean")).abs().max() < 1e-9
    near(answer.out, f"act_out_{threshold}")


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_recycled_selects_the_published_positions(aggregate):
    steps = [golden(f"recycled_{name}") for name in ("q_new", "k_new", "v_new")]
    answer = method("recycled", budget=32, stride=6, aggregate=aggregate).reference(Q, K, V, *steps)
    told = json.loads(str(GOLDEN[f"recycled_selected_{aggregate}"]))
    assert answer.extras["selected"] == [[sorted(head) for head in step] for step in told]
    assert answer.extras["full_steps"] == GOLDEN["recycled_full_steps"].tolist()
    assert (answer.out - golden(f"recycled_{aggregate}")).abs().max() < 2e-6


@pytest.mark.parametrize("case", FLEX)
def test_flexprefill_selects_the_published_blocks_in_both_precisions(case):
    block, gamma, tau = case.split("_")
    size = int(block[1:])
    flex = method("flexprefill", block=size, gamma=float(gamma[1:]), tau=float(tau[1:]), min_budget=size)
    answer = flex.reference(Q, K, V)
    assert torch.equal(answer.extras["block_mask"], golden(f"flex_{case}_mask"))
    assert torch.equal(flex.select(Q, K).kept, golden(f"flex_{case}_mask"))
    torch.testing.assert_close(answer.extras["jsd"], golden(f"flex_{case}_jsd"), atol=1e-6, rtol=0, equal_nan=True)
    if f"flex_{case}_out" in GOLDEN:
        near(answer.out, f"flex_{case}_out")


@pytest.mark.parametrize(("name", "pooling"), [("avgpool", "mean"), ("avgpool_norm", "mean_sqrt")])
def test_dhsa_lists_the_published_tokens(name, pooling):
    dhsa = method("dhsa", block=32, budget=96, global_tokens=16, local_tokens=32, instruction=32, pooling=pooling)
    answer = dhsa.reference(Q, K, V, boundaries=GOLDEN["dhsa_boundaries"].tolist())
    assert torch.equal(answer.extras["indices"], golden(f"dhsa_{name}_idx").long())
    near(answer.out, f"dhsa_{name}_out")
    near(dhsa.reference(Q, K, V, indices=golden(f"dhsa_{name}_idx")).out, f"dhsa_{name}_out")


def test_dhsa_finds_the_published_boundaries_in_attention():
    ratios = mass_ratios(attention_weights(Q, K, causal_mask(256)).mean(0))
    assert (ratios - golden("dhsa_ratios")).abs().max() < 1e-8
    assert select_boundaries(ratios, 1.1, 8, 8, 32) == GOLDEN["dhsa_labels"].tolist()


@pytest.mark.parametrize("density", ["0.25", "0.125"])
@pytest.mark.parametrize("variant", ["topk", "a", "vs", "vsb"])
def test_dhsa_keeps_the_published_blocks_outside_ties(variant, density):
    answer = method("dhsa", variant=variant, block=32, key_block=8, density=float(density)).reference(Q, K, V)
    kept, told = answer.extras["block_mask"], golden(f"dhsa_{variant}_d{density}_mask")
    assert not ((kept != told) & ~golden(f"dhsa_{variant}_d{density}_tied")).any()
    assert torch.equal(kept.sum(-1), told.sum(-1))
    if variant == "vs" and density == "0.25":
        near(answer.out, "dhsa_vs_d0.25_out")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "knobs", "plan", "chunks", "told"), [
    ("dense", {}, None, None, "dense"), ("dense", {}, None, [48, 48, 64], "dense"),
    ("duo", {"sink": 8, "recent": 24}, ROLES, None, "duo_single"),
    ("duo", {"sink": 8, "recent": 24}, ROLES, [48, 48, 64], "duo_chunk48"),
    ("razor", {"sink": 4, "window_min": 24, "window_div": 5}, ROLES, None, "razor"),
    ("razor", {"sink": 4, "window_min": 24, "window_div": 5}, ROLES, [100, 60], "razor"),
    ("recycled", {"budget": 24, "stride": 4}, None, None, "recycled"),
    ("flexprefill", {"block": 16, "gamma": 0.9, "tau": 0.3, "min_budget": 16}, None, None, "flex"),
    ("power", {"block": 8, "window": 2}, None, None, "power"),
    ("power", {"block": 8, "window": 2}, None, [48, 7, 1, 104], "power"),
    ("act", {"beta": 0.4, "threshold": 0.04}, HEADS, None, "act"), ("dhsa", DHSA, None, None, "dhsa"),
])  # fmt: skip
def test_the_engine_gives_the_published_logits(golden_llama, dtype, name, knobs, plan, chunks, told):
    boundaries = BORDERS if name == "dhsa" else None
    engine = Engine(copy.deepcopy(golden_llama).to(dtype), method(name, **knobs), plan, page=16)
    read = engine.prefill(IDS[:160], chunks, boundaries).double()
    steps = torch.stack([engine.step(token) for token in IDS[160:]]).double()
    if f"{told}_prefill" in LLAMA:
        assert np.abs(read[::8].numpy() - LLAMA[f"{told}_prefill"]).max() < 2e-4
    if f"{told}_prefill_tail" in ENGINE:
        assert np.abs(read[-8:].numpy() - ENGINE[f"{told}_prefill_tail"]).max() < 2e-4
    decoded = LLAMA if f"{told}_decode" in LLAMA else ENGINE
    assert np.abs(steps.numpy() - decoded[f"{told}_decode"]).max() < 2e-4
