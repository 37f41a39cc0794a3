"""The probes that one forward answers: what they say, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.attention.pattern_capture import ColumnMaskedAttention, visit_patterns
from services.interpretability.causal.simplified_attention import SimplifiedAttention
from services.interpretability.experiments.ablation import Ablation
from services.interpretability.experiments.activation_patching import ActivationPatching
from services.interpretability.experiments.attention import AttentionPatterns, rollout
from services.interpretability.experiments.attention_sinks import AttentionSinks
from services.interpretability.experiments.attribution import LogitAttribution
from services.interpretability.experiments.deconstruction import Deconstruction
from services.interpretability.experiments.head_patterns import HeadPatterns
from services.interpretability.experiments.indicators import Indicators, indicators
from services.interpretability.experiments.logit_lens import LogitLens
from shared.lm.taps import trace
from shared.registry import CallContext
from tests.golden import read_golden


def ask(study_type, context, /, **options):
    study = study_type.load(context)
    return study.predict([study.In.model_validate({**study.card.example, **options})], CallContext())[0]


@pytest.mark.parametrize(
    ("study", "options", "field"),
    [
        (AttentionPatterns, {"text": None, "messages": [{"role": "user", "content": "x"}]}, "messages"),
        (AttentionPatterns, {"text": None, "ids": [1, 256]}, "ids"),
        (AttentionPatterns, {"text": "a", "ids": [1]}, "text"),
        (AttentionPatterns, {"layers": [3]}, "layers"),
        (AttentionPatterns, {"layers": []}, "layers"),
        (AttentionPatterns, {"heads": [4]}, "heads"),
        (AttentionPatterns, {"queries": [99]}, "queries"),
        (AttentionSinks, {"text": "too short"}, "text"),
        (AttentionSinks, {"text": "x" * 2049}, "text"),
        (AttentionSinks, {"remove": 400}, "remove"),
        (AttentionSinks, {"remove": 0, "heads": [[9, 0]]}, "heads"),
        (AttentionSinks, {"remove": 0, "heads": [[1]]}, "heads"),
        (LogitLens, {"text": "x" * 600}, "text"),
        (LogitLens, {"text": "abc", "position": 3}, "position"),
        (HeadPatterns, {"text": "k"}, "text"),
        (HeadPatterns, {"half": 2000}, "half"),
        (Indicators, {"layers": [3]}, "layers"),
        (Indicators, {"text": "x" * 1100}, "text"),
        (Ablation, {"kind": "override", "continuation": 0}, "keys"),
        (Ablation, {"kind": "override", "keys": [2], "continuation": 3}, "continuation"),
        (ActivationPatching, {"corrupt": "longer than that"}, "corrupt"),
        (Deconstruction, {"kinds": ["average"], "corpus": "short"}, "corpus"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(context, study, options, field):
    error = ask(study, context, **options)
    assert isinstance(error, InvalidOption | TooLarge)
    assert error.field == field


def test_rows_are_those_of_the_pattern_and_queries_slice_them(context, tiny):
    report = ask(AttentionPatterns, context, text="kqzwxm kqzwx", layers=[1], heads=[2])
    ids = tiny.encode("kqzwxm kqzwx")
    pattern = trace(tiny.model, tiny.tensor([ids]), capture=["pattern.1"])["pattern.1"][0, 2]
    assert np.allclose(report.grid("1-2").values, pattern.numpy(), atol=1e-6)
    whole = ask(AttentionPatterns, context, layers=[1], heads=[2]).grid("1-2").values
    assert ask(AttentionPatterns, context, layers=[1], heads=[2], queries=[-1, 3]).grid("1-2").values == [
        whole[3],
        whole[-1],
    ]
    assert ask(AttentionPatterns, context, text=None, ids=[1, 2, 3]).scalars["tokens"].value == 3


@pytest.mark.parametrize("reduce", ["mean", "max", "rollout"])
def test_reduced_rows_follow_the_whole_ones(context, reduce):
    rows = np.array(
        [
            [ask(AttentionPatterns, context, layers=[l], heads=[h]).grid(f"{l}-{h}").values for h in range(4)]
            for l in range(3)
        ]
    )
    report = ask(AttentionPatterns, context, layers=[1], reduce=reduce)
    expected = {"mean": rows[1].mean(0), "max": rows[1].max(0), "rollout": rollout(rows.mean(1))}[reduce]
    assert np.allclose(report.grids[0].values, expected, atol=1e-5)


def test_dump_over_four_million_cells_is_refused_and_rows_of_a_long_text_never_make_a_whole_map(context, tiny):
    error = ask(AttentionPatterns, context, text="x" * 1500, layers=None)
    assert isinstance(error, TooLarge)
    assert "3·4·1500·1500 = 27,000,000" in error.detail
    assert "queries" in error.hint
    assert ask(AttentionPatterns, context, text="x" * 1500, layers=None, queries=[-1]).scalars["queries"].value == 1
    seen = []
    ids = tiny.tensor([[i % 250 for i in range(2000)]])
    visit_patterns(tiny.model, ids, lambda _layer, _start, rows: seen.append(rows.shape))
    assert max(shape[2] for shape in seen) <= 128
    assert sum(shape[2] for shape in seen) == 2000 * tiny.layers


def test_attribution_adds_up_and_scaling_by_one_changes_nothing(context):
    report = ask(LogitAttribution, context)
    assert report.scalars["residual"].value == pytest.approx(0, abs=1e-4)
    parts = sum(report.scalars[name].value for name in ("heads", "mlps", "embedding", "biases"))
    assert parts == pytest.approx(report.scalars["total"].value, abs=1e-6)
    report = ask(Ablation, context, kind="scale", factor=1.0, continuation=0)
    assert report.scalars["nll_change"].value == pytest.approx(0, abs=1e-6)
    assert report.scalars["kl"].value == pytest.approx(0, abs=1e-6)
    text = "kqzwxm kqzwxm kqzwxm"
    report = ask(Deconstruction, context, kinds=["average"], corpus=text, text=text)
    assert np.allclose(np.array(report.grid("layers").values, float), 0, atol=1e-4)


def test_the_last_layer_of_the_lens_is_the_model_and_a_text_said_twice_has_patterns(context, tiny):
    report = ask(LogitLens, context, text="kqzwxm kqzwx")
    ids = tiny.encode("kqzwxm kqzwx")
    chances = tiny.model(tiny.tensor([ids]))[0].softmax(-1)
    expected = [float(chances[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    assert np.allclose(report.grid("next_token").values[-1], expected, atol=1e-5)
    report = ask(HeadPatterns, context, text="kqzwx")
    assert (report.grid("induction").text, report.scalars["tokens"].value) == ("kqzwxkqzwx", 10)


def test_indicators_of_a_layers_maps_equal_the_golden_ones():
    golden = read_golden(Path(__file__).parent / "golden/indicators.arrays")
    found = indicators(torch.from_numpy(golden["maps"]))
    for name in ("entropy", "concentration", "sink", "local_focus"):
        assert np.allclose(getattr(found, name), golden[name], atol=1e-6), name


@pytest.mark.parametrize("kind", ["uniform", "zero", "mean", "resample"])
def test_ablation_moves_the_text_and_shows_ten_controls(context, kind):
    report = ask(Ablation, context, kind=kind, continuation=0, correct="m", wrong="d")
    assert report.scalars["nll_change"].value != 0
    assert "10 draws" in report.scalars["nll_control"].note
    assert {"logit_diff_before", "logit_diff_after"} <= report.scalars.keys()


def test_patching_reaches_the_other_prompt_and_ablation_nothing_before_it(context):
    report = ask(Ablation, context, positions=[9], continuation=0)
    assert max(report.strips[0].values[:9]) == pytest.approx(0, abs=1e-6)
    assert max(report.strips[0].values[9:]) > 0
    assert ask(Ablation, context, kind="override", keys=[2], continuation=0).scalars["kl"].value > 0
    report = ask(ActivationPatching, context, clean="abc", corrupt="dbc", correct="m", wrong="d")
    effect = np.array(report.grid("effect").values)
    assert effect[0, 0] == pytest.approx(1, abs=1e-4), "the prompts differ in one token, and all of it is here"
    assert np.allclose(effect[0, 1:], 0, atol=1e-4), "before the first block, other positions are equal"


@pytest.mark.parametrize(("site", "places"), [("z", 4), ("k", 2), ("mlp_out", 12)])
def test_sites_with_heads_are_exchanged_by_head(context, site, places):
    assert np.array(ask(ActivationPatching, context, site=site).grid("effect").values).shape == (3, places)


@pytest.mark.parametrize("back", [1, 2])
def test_queries_of_the_layer_itself_change_nothing(tiny, back):
    ids = tiny.tensor([tiny.encode("kqzwxm kqzwx")])
    found = tiny.model(ids, attend=SimplifiedAttention("earlier", [(0, h) for h in range(4)], back=back))
    assert np.allclose(found, tiny.model(ids), atol=1e-4), "below the first layer there is none: its own are used"


def test_heads_are_relaxed_one_at_a_time_and_each_relaxation_once(context):
    layers = ask(Deconstruction, context, kinds=["uniform", "identity", "uniform"]).grid("layers")
    assert layers.rows.ticks == ["uniform", "identity"]
    assert [len(row) for row in layers.values] == [len(layers.columns.ticks)] * 2
    report = ask(Deconstruction, context, each="head", kinds=["identity"])
    assert np.array(report.grid("identity").values).shape == (3, 4)
    assert any("dependence" in warning for warning in report.warnings)


def test_hidden_column_is_seen_by_nobody_that_is_named(tiny):
    ids = tiny.tensor([tiny.encode("kqzwxm kqzwx")])
    everyone = [(l, h) for l in range(3) for h in range(4)]
    first, other = (tiny.model(ids, attend=ColumnMaskedAttention([2], everyone)) for _ in range(2))
    assert (first == other).all()
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 256
    seen = tiny.model(changed, attend=ColumnMaskedAttention([2], everyone))
    assert np.allclose(seen[0, 3:], first[0, 3:], atol=1e-5), "what nobody looks at can't matter"
