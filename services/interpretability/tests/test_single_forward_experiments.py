"""The probes that one forward answers: what they say, and what they refuse."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from fovea.errors import Cancelled, InvalidOption, TooLarge
from services.interpretability.attention.pattern_capture import ColumnMaskedAttention, visit_patterns
from services.interpretability.experiments.ablation import Ablation
from services.interpretability.experiments.activations import Activations
from services.interpretability.experiments.attention import AttentionPatterns, rollout
from services.interpretability.experiments.attention_sinks import AttentionSinks
from services.interpretability.experiments.head_patterns import HeadPatterns
from services.interpretability.experiments.logit_lens import LogitLens
from services.interpretability.rendering.render import render
from services.interpretability.tests.conftest import arrays, artefact, ask, probing
from shared.lm.decoder import Decoder
from shared.lm.taps import Scale, trace
from shared.registry import CallContext


@pytest.mark.parametrize(("study", "options", "field"), [
    (AttentionPatterns, {"text": None, "messages": [{"role": "user", "content": "x"}]}, "messages"),
    (AttentionPatterns, {"text": None, "ids": [1, 256]}, "ids"),
    (AttentionPatterns, {"text": "a", "ids": [1]}, "text"), (AttentionPatterns, {"layers": [3]}, "layers"),
    (AttentionPatterns, {"layers": []}, "layers"), (AttentionPatterns, {"heads": [4]}, "heads"),
    (AttentionPatterns, {"queries": [99]}, "queries"), (AttentionSinks, {"text": "too short"}, "text"),
    (AttentionSinks, {"text": "x" * 2049}, "text"), (AttentionSinks, {"remove": 400}, "remove"),
    (AttentionSinks, {"remove": 0, "heads": [[9, 0]]}, "heads"),
    (AttentionSinks, {"remove": 0, "heads": [[1]]}, "heads"), (LogitLens, {"text": "x" * 600}, "text"),
    (LogitLens, {"text": "abc", "position": 3}, "position"), (HeadPatterns, {"text": "k"}, "text"),
    (HeadPatterns, {"half": 2000}, "half"), (Ablation, {"kind": "override", "continuation": 0}, "keys"),
    (Ablation, {"kind": "override", "keys": [2], "continuation": 3}, "continuation"),
    (Ablation, {"kind": "override", "keys": [9], "positions": [2, 12], "continuation": 0}, "positions"),
    (Ablation, {"correct": "m"}, "wrong"), (Ablation, {"correct": "12", "wrong": "15"}, "wrong"),
    (Ablation, {"positions": [99], "continuation": 0}, "positions"),
    (Ablation, {"phase": "decode", "continuation": 0}, "phase"),
    (Ablation, {"kind": "zero", "factor": 0.2}, "factor"), (Ablation, {"kind": "scale", "keys": [1]}, "keys"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_name(context, study, options, field):
    with pytest.raises((InvalidOption, TooLarge), check=lambda e: e.field == field):
        ask(study, context, **options)
    with pytest.raises(ValidationError, match="positions"):  # as it would say that heads do nothing
        Ablation.In(text="ab", heads=[[0, 0]], positions=[])


def test_rows_are_those_of_the_pattern_queries_slice_them_and_a_dump_of_millions_is_refused(context, tiny):
    report = ask(AttentionPatterns, context, text="kqzwxm kqzwx", layers=[1], heads=[2])
    ids = tiny.encode("kqzwxm kqzwx")
    pattern = trace(tiny.model, tiny.tensor([ids]), capture=["pattern.1"])["pattern.1"][0, 2]
    assert np.allclose(report.grid("1-2").values, pattern.numpy(), atol=1e-6)
    whole = ask(AttentionPatterns, context, layers=[1], heads=[2]).grid("1-2").values
    sliced = ask(AttentionPatterns, context, layers=[1], heads=[2], queries=[-1, 3])
    assert sliced.grid("1-2").values == [whole[3], whole[-1]]
    assert ask(AttentionPatterns, context, text=None, ids=[1, 2, 3]).scalars["tokens"].value == 3
    with pytest.raises(TooLarge, match="3·4·1500·1500 = 27,000,000", check=lambda e: "queries" in e.hint):
        ask(AttentionPatterns, context, text="x" * 1500, layers=None)
    assert ask(AttentionPatterns, context, text="x" * 1500, layers=None, queries=[-1]).scalars["queries"].value == 1
    seen = []
    ids = tiny.tensor([[i % 250 for i in range(2000)]])
    visit_patterns(tiny.model, ids, lambda _layer, _start, rows: seen.append(rows.shape))
    assert max(shape[2] for shape in seen) <= 128
    assert sum(shape[2] for shape in seen) == 2000 * tiny.layers


@pytest.mark.parametrize("reduce", ["mean", "max", "rollout"])
def test_reduced_rows_follow_the_whole_ones(context, reduce):
    grids = ask(AttentionPatterns, context, layers=None).grids
    rows = np.array([grid.values for grid in grids]).reshape(3, 4, *np.shape(grids[0].values))
    report = ask(AttentionPatterns, context, layers=[1], reduce=reduce)
    expected = {"mean": rows[1].mean(0), "max": rows[1].max(0), "rollout": rollout(rows.mean(1))}[reduce]
    assert np.allclose(report.grids[0].values, expected, atol=1e-5)
    sliced = ask(AttentionPatterns, context, layers=[1], reduce=reduce, queries=[3])
    assert np.allclose(sliced.strips[0].values, expected[3], atol=1e-5), "nobody sees what comes after it"


def test_the_last_layer_of_the_lens_is_the_model_and_a_text_said_twice_has_patterns(context, tiny):
    report = ask(LogitLens, context, text="kqzwxm kqzwx")
    ids = tiny.encode("kqzwxm kqzwx")
    chances = tiny.model(tiny.tensor([ids]))[0].softmax(-1)
    expected = [float(chances[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    assert np.allclose(report.grid("next_token").values[-1], expected, atol=1e-5)
    report = ask(HeadPatterns, context, text="kqzwx")
    assert (report.grid("induction").text, report.scalars["tokens"].value) == ("kqzwxkqzwx", 10)


@pytest.mark.parametrize("kind", ["uniform", "zero", "mean", "resample"])
def test_ablation_moves_the_text_and_shows_ten_controls(context, kind):
    report = ask(Ablation, context, kind=kind, continuation=0, correct="m", wrong="d")
    assert report.scalars["nll_change"].value != 0
    assert "10 draws" in report.scalars["nll_control"].note
    assert {"logit_diff_before", "logit_diff_after"} <= report.scalars.keys()


def test_ablation_moves_nothing_before_its_position_and_has_no_control_where_few_heads_are_left(context):
    report = ask(Ablation, context, positions=[9], continuation=0)
    assert max(report.strips[0].values[:9]) == pytest.approx(0, abs=1e-6)
    assert max(report.strips[0].values[9:]) > 0
    assert ask(Ablation, context, kind="override", keys=[2], continuation=0).scalars["kl"].value > 0
    scalars = ask(Ablation, context, kind="scale", factor=1.0, continuation=0).scalars
    assert [scalars[name].value for name in ("nll_change", "kl")] == pytest.approx([0, 0], abs=1e-6)
    once, twice = (ask(Ablation, context, kind="scale", heads=[[1, 1]] * n, continuation=0) for n in (1, 2))
    assert twice.scalars == once.scalars
    report = ask(Ablation, context, heads=[[l, h] for l in (0, 1) for h in range(4)], continuation=0)
    assert "nll_control" not in report.scalars
    assert "too few are left for a control" in report.warnings[0]


def test_hidden_column_is_seen_by_nobody_that_is_named(tiny):
    ids = tiny.tensor([tiny.encode("kqzwxm kqzwx")])
    everyone = tiny.complement([])
    first, other = (tiny.model(ids, attend=ColumnMaskedAttention([2], everyone)) for _ in range(2))
    assert (first == other).all()
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 256
    seen = tiny.model(changed, attend=ColumnMaskedAttention([2], everyone))
    assert np.allclose(seen[0, 3:], first[0, 3:], atol=1e-5), "what nobody looks at can't matter"
    mask = ColumnMaskedAttention([0, 2], [(0, 1)])
    q, k, v = torch.randn(3, 1, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    z = mask(0, q, k, v, 0)
    for t in range(5):  # only the first has nothing but itself to look at
        columns = [column for column in range(t + 1) if column not in {0, 2}] or [t]
        row = (q[0, t, 1] @ k[0, columns, 1].T / 2).softmax(-1)
        assert torch.allclose(z[0, t, 1], row @ v[0, columns, 1], atol=1e-6)


@pytest.mark.parametrize(("naming", "name"), [
    ("transformerlens", "blocks.1.attn.hook_z"), ("modules", "model.layers.1.self_attn.o_proj.input"), ("fovea", "z.1"),
])  # fmt: skip
def test_activations_are_the_models_own_under_each_naming(context, tiny, naming, name):
    report = ask(Activations, context, naming=naming, names=["z.1", "final"])
    found = arrays(artefact(report, "activations.npz").data())
    expected = trace(tiny.model, tiny.tensor(found["ids"].tolist()), capture=["z.1"])["z.1"].numpy()
    np.testing.assert_array_equal(found[name], expected)
    assert render(report, "application/x-npz") == artefact(report, "activations.npz").data()


async def test_activations_without_a_name_or_too_large_are_refused_and_others_come_back_as_bytes(tmp_path, context):
    async with probing(tmp_path) as client:
        body = {**Activations.card.example, "model": "tiny-induction"}
        body.pop("lm")
        (file,) = (await client.post("/v1/probe/activations", json=body)).json()["artefacts"]
        answer = await client.get(f"/v1/probe/artefacts/{file['sha256']}")
        assert answer.headers["content-type"] == "application/x-npz"
        assert "blocks.1.attn.hook_pattern" in arrays(answer.content)
        assert (await client.post("/v1/probe/activations?format=npz", json=body)).content == answer.content
    with pytest.raises(InvalidOption, match="no name in modules"):
        ask(Activations, context, names=["pattern.0"], naming="modules")
    with pytest.raises(InvalidOption, match="hook_nothing"):
        ask(Activations, context, names=["blocks.0.hook_nothing"])
    with pytest.raises(TooLarge, match="at most"):
        ask(Activations, context, names=["pattern"], text="x" * 1500)


def test_tokens_behind_a_character_of_several_keep_their_places(smollm2):
    text = "A party 🎉 at noon 日本語 ends"
    spans = smollm2.token_spans(smollm2.encode(text))
    assert "".join(text[span.start : span.end] for span in spans) == text
    assert text[spans[-1].start : spans[-1].end] == spans[-1].text == " ends"


def test_heads_are_hidden_in_the_continuation_alone_while_the_last_position_stays_that(context, tiny):
    """As a cache would have it: the text is read whole, then each token with the heads hidden."""
    facts = {"kind": "zero", "heads": [[1, 1], [1, 2], [0, 3]], "text": "kqzwxm kqzwxm kqzwxm", "continuation": 5}
    found = {phase: ask(Ablation, context, **facts, phase=phase) for phase in ("all", "decode")}
    ids = tiny.encode(facts["text"])
    cache, made = tiny.model.new_cache(room=64), list[int]()
    trace(tiny.model, tiny.tensor([ids[:-1]]), cache=cache, keep=1)
    for _ in range(5):
        fed = made[-1] if made else ids[-1]
        edits = [Scale(f"z.{l}", 0.0, heads=h) for l, h in facts["heads"]]
        step = trace(tiny.model, tiny.tensor([[fed]]), cache=cache, keep=1, edits=edits)
        made.append(int(step.logits[0, -1].argmax()))
    after = {phase: report.tables[0].rows[0][1] for phase, report in found.items()}
    assert after["decode"] == tiny.tokenizer.decode(made) != after["all"]
    assert found["decode"].scalars["kl"] == found["all"].scalars["kl"]
    found = [ask(Ablation, context, kind="zero", positions=[at], continuation=6) for at in (-1, len(ids) - 1)]
    assert found[0].tables == found[1].tables


def test_a_long_text_is_read_out_some_positions_at_a_time(context, tiny, monkeypatch):
    """The logits of 8,000 tokens of SmolLM2 take 1.6 GB."""
    held, read = [], Decoder.read_logits

    def spy(model, stream):
        held.append(len(stream))
        return read(model, stream)

    monkeypatch.setattr(Decoder, "read_logits", spy)
    text = "kqzwxm " * 100
    ids = tiny.tensor([tiny.encode(text)])
    report = ask(Ablation, context, text=text, continuation=0)
    assert (max(held), len(report.strips[0].values)) == (128, ids.shape[1])
    whole = cross_entropy(tiny.model(ids)[0, :-1], ids[0, 1:])
    assert report.scalars["nll_before"].value == pytest.approx(float(whole), rel=1e-5)


def test_an_ablation_whose_caller_left_ends_before_the_next_draw(context):
    run = CallContext(report=lambda *_: run.cancel())
    (found,) = Ablation.load(context).predict([Ablation.In.model_validate(Ablation.card.example)], run)
    assert isinstance(found, Cancelled)
