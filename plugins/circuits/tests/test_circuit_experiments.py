"""Circuit experiments and their tasks; patching against goldens, whole edited forwards, and families of models."""

import json

import numpy as np
import pytest
import pytest_asyncio
import torch
from pydantic import ValidationError
from scipy.stats import spearmanr

from fovea.errors import Cancelled, InvalidOption, Malformed, TooLarge
from fovea_circuits import patching
from fovea_circuits.activation_cache import run_with_cache
from fovea_circuits.circuit_tasks import group_by_length, make_coloured_objects, make_indirect_objects, parse_pairs
from fovea_circuits.experiments import circuits, head_comparison
from fovea_circuits.experiments.activation_patching import ActivationPatching
from fovea_circuits.experiments.attribution import LogitAttribution
from fovea_circuits.experiments.circuits import Circuits, cells, logit_difference, run
from fovea_circuits.experiments.deconstruction import Deconstruction
from fovea_circuits.experiments.head_comparison import HeadComparison
from fovea_circuits.experiments.indicators import Indicators, indicators
from fovea_circuits.patching import ablate, ablation_values
from fovea_circuits.simplified_attention import SimplifiedAttention
from plugins.circuits.tests.conftest import GOLDEN, load_golden, read
from services.interpretability.core.report import Report
from services.interpretability.core.result_store import ResultStore
from services.interpretability.tests.conftest import ask, probing
from shared.lm.taps import Replace, Uniform, trace
from tests.contract.checks.loaded import CancelsAfter
from tests.golden import read_golden
from tests.harness.language_model import share_language_model

MAP = {"name": "effect", "rows": {"label": "", "ticks": []}, "columns": {"label": "", "ticks": []}, "caption": ""}
LINE = {"clean": "abc", "corrupt": "abd", "correct": "x", "wrong": ["y", "z"]}


def test_own_pairs_become_cases_or_are_refused_where_the_tokenizer_cannot_hold_them(tiny):
    lines = [LINE, {**LINE, "clean": "abcd", "corrupt": "abce"}, LINE]
    found = group_by_length(parse_pairs(tiny, "\n".join(map(json.dumps, lines))))
    assert ([len(batch.cases) for batch in found], len(found[0].answers[0])) == ([2, 1], 3)
    with pytest.raises(InvalidOption, match="names as one token"):
        make_indirect_objects(tiny, 4)
    with pytest.raises(InvalidOption, match="several tokens"):
        make_coloured_objects(tiny, 4)


@pytest.mark.parametrize(("line", "error"), [
    ({**LINE, "corrupt": "abcd"}, InvalidOption), ({**LINE, "wrong": []}, InvalidOption),
    ({**LINE, "correct": ""}, InvalidOption), ({"clean": "a"}, Malformed), ([1], Malformed), ("[" * 10**5, Malformed),
    ({**LINE, "wrong": ["y", "xy"]}, InvalidOption), ({**LINE, "correct": ["x", "y"]}, Malformed),
])  # fmt: skip
def test_bad_line_is_refused_by_its_number(tiny, line, error):
    first = {**LINE, "clean": "a\u2028c", "corrupt": "a\u2028d"}  # ends no line of JSON
    with pytest.raises(error, match="Line 3", check=lambda e: e.field == "pairs"):
        parse_pairs(tiny, json.dumps(first, ensure_ascii=False) + "\n\n" + json.dumps(line).strip('"'))


def test_unread_pairs_unsolved_tasks_and_knock_outs_without_control_are_told(context, monkeypatch):
    report = ask(Circuits, context, knockout=7)
    assert [bar.value is None for bar in report.bars[0].bars] == [False, False, True]
    assert "no control" in report.bars[0].caption
    report = ask(Circuits, context, pairs=json.dumps({**LINE, "correct": "~", "wrong": "a"}), knockout=0)
    assert any("Task not solved" in warning for warning in report.warnings)
    with monkeypatch.context() as patch:
        patch.setattr(run, "CircuitCells", None)  # refused before anything is measured
        for refused in ({"override": [[0, 0]]}, {"receivers": [[-1, "q", 0]]}, {"receivers": [[0, "k", 2]]}):
            with pytest.raises(InvalidOption, check=lambda e, refused=refused: e.field in refused):
                ask(Circuits, context, pairs=json.dumps(LINE), knockout=0, **refused)
    assert (Circuits.In().unread, Circuits.In(task="own", pairs="{}").unread) == ([], [])
    monkeypatch.setattr(run, "make_cases", lambda spec, subject: parse_pairs(subject, spec.pairs))
    report = ask(Circuits, context, task="ioi", knockout=0)
    assert report.warnings[0] == "pairs were not read: they belong to the task own, and this is ioi."


def test_prompts_that_do_not_fit_together_are_run_apart_with_the_same_effects(context, monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(
        cells, "run_with_cache", lambda model, ids: sizes.append(len(ids)) or run_with_cache(model, ids)
    )
    whole = ask(Circuits, context)
    monkeypatch.setattr(cells, "MAX_BATCH_BYTES", 1)
    monkeypatch.setattr(cells, "MAX_HELD_BYTES", 0)
    maps = [np.array(report.grids[1].values, float) for report in (whole, ask(Circuits, context))]
    assert np.allclose(*maps, rtol=1e-3, atol=1e-5, equal_nan=True)
    assert (sizes[:2], {*sizes[2:]}) == ([3, 3], {1})


def test_a_run_that_is_stopped_between_any_two_cells_keeps_what_it_has(context):
    study, spec = Circuits.load(context), Circuits.In.model_validate(Circuits.card.example)
    for looks in range(1, 100):
        study.store = ResultStore(context.objects.under(str(looks)), context.cache)
        (found,) = study.predict([spec], CancelsAfter(looks))
        if not isinstance(found, Cancelled):
            break
    assert looks > 5
    assert isinstance(found, Report)


def test_orders_alternate_and_prompts_of_the_real_tokenizer_are_minimal_pairs_as_golden_ones(smollm2):
    for case in (*make_indirect_objects(smollm2, 8), *make_indirect_objects(smollm2, 4, counterfactual="abc")):
        assert len(case.clean) == len(case.corrupt)
        assert {"IO", "S1", "S2", "END"} <= set(case.marks)
        assert (case.clean[case.marks["IO"][0]], case.clean[case.marks["S2"][0]]) == (case.correct, case.wrong[0])
    for case in make_coloured_objects(smollm2, 6):
        assert (len(case.clean), len(set(case.wrong) | {case.correct})) == (len(case.corrupt), 3)
        assert case.text.endswith("A:")
    found = make_indirect_objects(smollm2, 6, seed=1)
    assert [case.kind for case in found] == ["ABBA", "BABA"] * 3
    assert found == make_indirect_objects(smollm2, 6, seed=1) != make_indirect_objects(smollm2, 6, seed=2)
    for facts in read("smollm2_ioi.json")["prompts"][2:5]:
        answers = [smollm2.encode(f" {facts[who]}")[0] for who in ("io", "s")]
        last = run_with_cache(smollm2.model, smollm2.tensor([smollm2.encode(facts["prompt"])])).last
        assert logit_difference(last, smollm2.tensor([answers])) == pytest.approx(facts["logit_diff"], abs=0.02)
        assert (int(last.argmax()) == answers[0]) is facts["top1_is_io"]


def test_a_model_is_itself_others_are_compared_by_depth_and_heads_that_score_alike_have_one_rank(context, smollm2):
    report = ask(HeadComparison, context)
    assert report.scalars["same_place_induction"].value == pytest.approx(1)
    first, second = (report.grid(f"{side} induction").values for side in ("first", "second"))
    assert (first, max(report.grid("depth").values[4])) == (second, pytest.approx(np.max(first)))
    share_language_model(context.cache)
    report = ask(HeadComparison, context, lm=smollm2.name)
    assert "same_place_induction" not in report.scalars
    assert {(row[0], row[1]): row for row in report.tables[0].rows}["induction", smollm2.name][2] > 3
    one, other = np.zeros((4, 5)), np.zeros((4, 5))
    one[0, :2], other[3, 3:] = 0.5, (0.2, 0.9)
    assert head_comparison._correlate(one, other) == pytest.approx(spearmanr(one, other, axis=None).statistic)
    assert np.isnan(head_comparison._correlate(one, 0 * other))


@pytest.mark.parametrize(("study", "options", "field"), [
    (ActivationPatching, {"corrupt": "longer than that"}, "corrupt"),
    (ActivationPatching, {"correct": "12", "wrong": "15"}, "wrong"),
    (ActivationPatching, {"site": "resid_mid", "positions": [0]}, "positions"),
    (LogitAttribution, {"correct": "12", "wrong": "15"}, "wrong"),
    *((Circuits, {"method": how, "receivers": [[2, "q", 1]]}, "receivers") for how in ("activation", "attribution")),
    *((Circuits, {"method": how, "freeze_mlps": True}, "freeze_mlps") for how in ("activation", "attribution")),
    (Deconstruction, {"kinds": ["average"], "corpus": "short"}, "corpus"), (Indicators, {"layers": [3]}, "layers"),
    (Indicators, {"text": "x" * 1100}, "text"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_name(context, study, options, field):
    with pytest.raises((InvalidOption, TooLarge), check=lambda e: e.field == field):
        ask(study, context, **options)


def test_attribution_adds_up_of_the_positions_that_are_asked_for_and_the_texts_own_average_changes_nothing(context):
    report = ask(LogitAttribution, context)
    assert report.scalars["residual"].value == pytest.approx(0, abs=1e-4)
    parts = sum(report.scalars[name].value for name in ("heads", "mlps", "embedding", "biases"))
    assert parts == pytest.approx(report.scalars["total"].value, abs=1e-6)
    text = "kqzwxm kqzwxm kqzwxm"
    report = ask(Deconstruction, context, kinds=["average"], corpus=text, text=text)
    assert np.allclose(np.array(report.grid("layers").values, float), 0, atol=1e-4)
    found = [ask(Circuits, context, method="attribution", positions=at) for at in ("end", "all")]
    end, everywhere = (np.array(report.grid("effect on final").values[0]) for report in found)
    assert np.abs(end).max() < 1e-4 < np.abs(everywhere).max(), "prompts differ before the end"


def test_patching_reaches_the_other_prompt_and_a_patch_nowhere_is_refused(context):
    report = ask(ActivationPatching, context, clean="abc", corrupt="dbc", correct="m", wrong="d")
    effect = np.array(report.grid("effect").values)
    assert effect[0, 0] == pytest.approx(1, abs=1e-4), "the prompts differ in one token, and all of it is here"
    assert np.allclose(effect[0, 1:], 0, atol=1e-4), "before the first block, other positions are equal"
    with pytest.raises(ValidationError, match="positions"):
        ActivationPatching.In(clean="ab", corrupt="cd", correct="a", wrong="b", site="z", positions=[])


@pytest.mark.parametrize(
    ("site", "places", "axis"), [("z", 4, "head"), ("k", 2, "key/value head"), ("mlp_out", 12, "position")]
)
def test_sites_with_heads_are_exchanged_by_head(context, site, places, axis):
    found = ask(ActivationPatching, context, site=site).grid("effect")
    assert (np.array(found.values).shape, found.columns.label) == ((3, places), axis)


@pytest.mark.parametrize("back", [1, 2])
def test_queries_of_the_layer_itself_change_nothing(tiny, back):
    ids = tiny.tensor([tiny.encode("kqzwxm kqzwx")])
    found = tiny.model(ids, attend=SimplifiedAttention("earlier", [(0, h) for h in range(4)], back=back))
    assert np.allclose(found, tiny.model(ids), atol=1e-4), "below the first layer there is none: its own are used"


def test_indicators_equal_the_golden_ones_and_heads_are_relaxed_one_at_a_time(context):
    layers = ask(Deconstruction, context, kinds=["uniform", "identity", "uniform"]).grid("layers")
    assert layers.rows.ticks == ["uniform", "identity"]
    assert [len(row) for row in layers.values] == [len(layers.columns.ticks)] * 2
    report = ask(Deconstruction, context, each="head", kinds=["identity"])
    assert np.array(report.grid("identity").values).shape == (3, 4)
    assert any("dependence" in warning for warning in report.warnings)
    golden = read_golden(GOLDEN / "indicators.arrays")
    found = indicators(torch.from_numpy(golden["maps"]))
    for name in ("entropy", "concentration", "sink", "local_focus"):
        assert np.allclose(getattr(found, name), golden[name], atol=1e-6), name
    half = indicators(torch.from_numpy(golden["maps"]).bfloat16().requires_grad_())
    assert np.allclose(half.sink, golden["sink"], atol=0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    async with probing(tmp_path_factory.mktemp("probes")) as asked:
        yield asked


@pytest.mark.asyncio(loop_scope="module")
async def test_circuits_are_compared_at_several_thresholds(client):
    report = (await client.post("/v1/probe/circuits", json=Circuits.card.example)).json()
    told = (await client.post("/v1/probe/circuits/compare", json={"first": report, "second": report})).json()
    rows = told["tables"][0]["rows"]
    assert [row[0] for row in rows] == [0.01, 0.02, 0.05, 0.1]
    assert all(row[4:7] == [1.0, 1.0, 1.0] for row in rows)
    other = {**report, "grids": [{**grid, "values": grid["values"][:2]} for grid in report["grids"]]}
    answer = await client.post("/v1/probe/circuits/compare", json={"first": report, "second": other})
    assert answer.status_code == 422, "models of different size can't share heads"
    assert {value for row in told["grids"][0]["values"] for value in row} == {0.0, 1.0}
    both = {"first": report, "second": report, "fractions": [0.005, 0.015, 0.02]}
    told = (await client.post("/v1/probe/circuits/compare", json=both)).json()
    assert [grid["name"] for grid in told["grids"]] == ["top 0.5%", "top 1.5%", "top 2%"]


@pytest.mark.parametrize(("side", "status", "field"), [
    ("0" * 64, 404, ""), ({}, 400, "first"), ({"title": "x"}, 422, "first"),
    *(({"title": "x", "grids": [MAP | {"values": v}]}, 422, "first") for v in ([], [[]], [[1], []], [[1, 2], [3]])),
])  # fmt: skip
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_report_of_circuits_is_a_problem_that_names_its_side(client, side, status, field):
    answer = await client.post("/v1/probe/circuits/compare", json={"first": side, "second": side})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert field in answer.text


SETTINGS = sorted(read("tiny_gpt2_circuit.json")["path_patching"])


def patched(golden, facts, **more):
    receivers = facts["receivers"] if facts["receivers"] == "final" else [tuple(r) for r in facts["receivers"]]
    told = {"receivers": receivers, "positions": facts["position"], "freeze_mlps": facts["freeze_mlps"]}
    return circuits.path_patch(*golden.given, **told, **more)


@pytest.mark.parametrize("setting", SETTINGS)
def test_path_patching_equals_the_golden_one_in_batches_and_one_head_at_a_time(golden, setting):
    facts = golden.facts["path_patching"][setting]
    found = patched(golden, facts, batch=1 if setting in SETTINGS[::5] else 16)
    expected, effect = (np.array(facts[k], float) for k in ("patched_logit_diff", "normalised_effect"))
    assert found.clean == pytest.approx(facts["clean_logit_diff"], abs=1e-4)
    assert found.corrupt == pytest.approx(facts["corrupt_logit_diff"], abs=1e-4)
    assert (np.isnan(found.patched) == np.isnan(expected)).all()
    assert np.nanmax(np.abs(found.patched - expected)) < 1e-4
    assert np.nanmax(np.abs(found.effect - effect)) < 1e-3


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


def test_receivers_groups_and_positions_that_do_not_exist_are_refused(golden):
    for bad in ([(9, "q", 0)], [(1, "z", 0)], [(1, "q", 4)], []):
        with pytest.raises(InvalidOption, check=lambda e: e.field == "receivers"):
            circuits.path_patch(*golden.given, receivers=bad)
    llama = load_golden("llama")
    with pytest.raises(InvalidOption, match="groups 0…1"):
        circuits.path_patch(llama.model, llama.clean, llama.corrupt, llama.answers, receivers=[(1, "k", 2)])
    with pytest.raises(InvalidOption, match="position 12"):
        circuits.path_patch(*golden.given, positions=12)


@pytest.mark.parametrize("positions", ["all", "-1"])
def test_activation_patching_equals_the_golden_one(golden, positions):
    found = circuits.activation_patch(*golden.given, positions=("all" if positions == "all" else -1))
    assert np.abs(found - golden.facts["activation_patching_z_logit_diff"][positions]).max() < 1e-4


def test_denoising_is_noising_the_other_way_round_and_a_sender_that_says_the_same_has_no_effect(golden):
    found = circuits.activation_patch(*golden.given, denoise=True)
    assert np.allclose(found, circuits.activation_patch(golden.model, golden.corrupt, golden.clean, golden.answers))
    found = circuits.path_patch(golden.model, golden.clean, golden.clean.clone(), golden.answers)
    assert np.allclose(found.patched, found.clean, atol=1e-5)
    assert np.isnan(found.effect).all(), "no difference between the runs: the effect is undefined"


@pytest.mark.parametrize(("kind", "name"), [("zero", "zero"), ("uniform", "uniform_attention"), ("mean", "mean")])
def test_ablation_equals_the_golden_one(golden, kind, name):
    found = circuits.ablate(golden.model, golden.clean, golden.answers, kind=kind)
    assert np.abs(found - golden.facts[f"{name}_ablation_logit_diff"]).max() < 1e-4


def test_attribution_and_pattern_scores_equal_the_golden_ones(golden):
    found = circuits.direct_logit_attribution(golden.model, golden.clean, golden.answers)
    assert np.abs(found - golden.facts["direct_logit_attribution_last_pos"]).max() < 1e-4
    facts = golden.facts["head_scores_repeated_sequence"]
    found = circuits.head_patterns(golden.model, facts["ids"][: len(facts["ids"]) // 2])
    told = ("previous_token", "duplicate_token", "induction", "first_token_mass", "entropy_mean")
    for ours, theirs in zip(("previous", "duplicate", "induction", "first", "entropy"), told, strict=True):
        assert np.abs(found[ours] - facts[theirs]).max() < 1e-5


@pytest.mark.parametrize("case", read("circuit_overlap.json")["cases"])
def test_overlaps_equal_the_golden_ones_and_undefined_heads_are_never_chosen(case):
    first, second = (np.array(case[side], float) for side in ("first", "second"))
    for facts in case["results"]:
        found = circuits.overlap(list(first), list(second), facts["fraction"])
        assert ([list(h) for h in found.shared], len(found.union)) == (facts["shared"], facts["union_size"])
        told = tuple(facts[name] for name in ("jaccard", "coefficient", "share_of_first"))
        assert (found.jaccard, found.coefficient, found.share) == pytest.approx(told, abs=1e-9)
    assert circuits.top_heads([[np.nan, 0.0], [np.nan, np.nan]], 1.0) == [(0, 1)]
    assert len(circuits.top_heads(np.ones((10, 10)), 0.07)) == 7


def test_a_rerun_is_a_forward_with_one_head_replaced_and_attributions_sum_to_the_difference(model, family_prompts):
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
    found = patching.attribute_logits(run_with_cache(model, family_prompts[0]), family_prompts[2])
    assert found.total == pytest.approx(found.actual, abs=1e-9)
    assert np.abs(found.heads).max() > 1e-3
    clean, corrupt, answers = family_prompts
    estimated = patching.attribution_patch(model, clean, corrupt, answers)
    run, other, step = run_with_cache(model, clean), run_with_cache(model, corrupt), 1e-6
    near = [z + step * (there - z) for z, there in zip(run.z, other.z, strict=True)]
    moved = (patching.patch_heads(run, near, answers) - patching.logit_difference(run.last, answers)) / step
    np.testing.assert_allclose(moved, estimated, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("positions", [None, [3, 7], [-1, 5]])
@pytest.mark.parametrize("receivers", ["final", [(2, "q", 1), (1, "v", 0), (2, "k", 1)]])
@pytest.mark.parametrize("freeze", [False, True])
def test_path_patching_is_two_whole_forwards(model, family_prompts, positions, receivers, freeze):
    told = {"receivers": receivers, "freeze_mlps": freeze}
    found = patching.path_patch(model, *family_prompts, positions=positions or "all", **told)
    expected = naive(model, *family_prompts, (0, 2), positions=positions, **told)
    assert found.patched[0, 2] == pytest.approx(expected, abs=1e-9)


def test_mixing_and_ablations_take_what_a_layer_sees_and_never_a_prompts_own_values(model, family_prompts):
    for heads in ([], range(4)):
        attend = SimplifiedAttention("uniform", [(0, head) for head in heads], windows=model.config.windows)
        expected = trace(model, family_prompts[0], edits=[Uniform(0, heads)] if heads else []).logits
        torch.testing.assert_close(model(family_prompts[0], attend=attend), expected)
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
