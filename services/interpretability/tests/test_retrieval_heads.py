"""Retrieval heads and attention sinks: goldens, properties, and what teacher forcing scores."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fovea.errors import InvalidOption
from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.attention.retrieval_score import score_copies, split_half
from services.interpretability.experiments import attention_sinks, retrieval_heads
from services.interpretability.experiments.retrieval_heads.run import draw_controls
from services.interpretability.experiments.retrieval_heads.spec import draw_samples
from services.interpretability.generation.forced_decoding import generate_answer, score_known_answer, trace_known_answer
from services.interpretability.generation.prefix_reader import BLOCK_TOKENS, PrefixReader, plan_pieces
from services.interpretability.tests.conftest import GOLDEN, WEIGHTS, ask, read
from shared.lm.builders import gemma3
from shared.lm.niah_prompts import NEEDLES, build_key_value_prompt, build_needle_prompt
from shared.lm.taps import trace
from tests.golden import read_golden
from tests.harness.hypothesis_profiles import fewer

FACTS = read("retrieval_score.json")
ROUGE = read("rouge_recall.json")["cases"]
NAMES = {"score_count": ("count", 1), "score_set_positions": ("positions", 1), "score_count_top3": ("count", 3)}
NAMES |= {"score_set_token_types": ("types", 1)}


@pytest.mark.parametrize("case", FACTS["cases"], ids=lambda case: str(case["case"]))
@pytest.mark.parametrize("form", NAMES)
def test_scores_equal_the_golden_ones(case, form):
    mode, top = NAMES[form]
    arrays = read_golden(GOLDEN / "retrieval_attention.arrays")
    rows, ids, said = (arrays[f"{what}_{case['case']}"] for what in ("att", "ids", "gen"))
    span = (case["needle_start"], case["needle_end"])
    found = retrieval_heads.retrieval_score(rows, ids.tolist(), said.tolist(), span, mode=mode, top=top)
    assert np.abs(found - case[form]).max() < 1e-9


@pytest.mark.parametrize("case", FACTS["needle_span_finder"]["cases"])
def test_spans_equal_the_golden_ones(case):
    assert list(retrieval_heads.needle_span(case["prompt_ids"], case["needle_ids"]) or (-1, -1)) == case["expected"]


@pytest.mark.parametrize("case", ROUGE)
def test_recalls_equal_the_golden_ones(case):
    assert retrieval_heads.rouge1_recall(case["reference"], case["response"]) == pytest.approx(case["recall"], abs=1e-9)


def test_an_empty_answer_scores_nothing_all_positions_count_in_a_short_prompt_and_halves_agree_by_likeness():
    assert retrieval_heads.rouge1_recall("…", "anything") == 0.0
    scores = np.random.default_rng(0).random((2, 3, 4))
    assert split_half(np.stack([scores[0]] * 4)) == pytest.approx(1)
    assert split_half(scores[:1]) is None
    assert split_half(np.zeros((4, 3, 4))) is None
    rows, ids = np.array([[[[0.1, 0.9, 0.0, 0.0]]], [[[0.2, 0.1, 0.7, 0.0]]]]), [4, 5]
    assert retrieval_heads.retrieval_score(rows, ids, [4, 5], (0, 2), top=5).tolist() == [[1.0]]
    assert retrieval_heads.retrieval_score(rows[:0], ids, [], (0, 2)).tolist() == [[0.0]]


def test_aggregate_equals_the_golden_one_and_nothing_kept_has_no_ranking():
    facts = FACTS["aggregation"]
    found = retrieval_heads.aggregate(facts["per_sample_scores"], facts["rouge1_recall"])
    assert found.kept == facts["kept"]
    assert np.abs(found.mean - facts["mean_score"]).max() < 1e-9
    assert np.abs(found.frequency - facts["activation_frequency"]).max() < 1e-9
    assert [f"{l}-{h}" for l, h in found.ranking] == facts["ranking"]
    assert len(found.at_least(0.1)) == facts["n_at_least_0.1"]
    assert [f"{l}-{h}" for l, h in found.top(0.05)] == facts["top_5_percent"]
    assert len(retrieval_heads.aggregate(np.ones((1, 10, 10)), [1.0]).top(0.07)) == 7
    assert [f"{l}-{h}" for l, h in found.always_active] == facts["always_active"]
    found = retrieval_heads.aggregate(np.ones((3, 2, 2)), [0.1, 0.2, 0.5])
    assert found.kept == found.ranking == found.top(0.5) == []


@settings(max_examples=fewer(3))
@given(st.integers(0, 10_000))
def test_columns_that_a_step_cannot_see_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    rows, ids, said = rng.random((6, 2, 3, 26)), rng.integers(0, 9, 20).tolist(), rng.integers(0, 9, 6).tolist()
    padded = rows.copy()
    for t in range(len(rows)):
        padded[t, ..., len(ids) + t :] = 99.0
    found, expected = (retrieval_heads.retrieval_score(one, ids, said, (5, 9)) for one in (padded, rows))
    assert (found == expected).all()


@pytest.fixture(scope="module")
def prompt(tiny):
    return build_key_value_prompt(tiny.tokenizer, pairs=5, seed=3, shots=2, key_chars=4, value_words=0)


def test_forcing_agrees_with_the_whole_pattern_and_with_measuring(tiny, prompt):
    names = [f"pattern.{l}" for l in range(tiny.layers)]
    traced = trace(tiny.model, tiny.tensor([[*prompt.ids, *prompt.answer_ids[:-1]]]), capture=names)
    rows = np.stack([traced[name][0, :, len(prompt.ids) - 1 :].numpy() for name in names])  # [L,H,steps,S]
    answered = trace_known_answer(PrefixReader(tiny), prompt, top=3)
    for t in range(len(prompt.answer_ids)):
        seen = rows[:, :, t, : len(prompt.ids) + t]
        for place in range(3):
            chosen = np.take_along_axis(seen, answered.top_positions[t, :, :, place, None], -1)[..., 0]
            assert np.allclose(chosen, np.sort(seen, -1)[..., -1 - place], atol=1e-6)
    answered = trace_known_answer(PrefixReader(tiny), prompt)
    expected = retrieval_heads.retrieval_score(rows.transpose(2, 0, 1, 3), prompt.ids, prompt.answer_ids, prompt.span)
    assert (score_copies(answered.top_positions, prompt.ids, prompt.answer_ids, prompt.span) == expected).all()
    one, other = trace_known_answer(PrefixReader(tiny), prompt).score, score_known_answer(tiny, prompt)
    assert (one.nll, one.accuracy) == (pytest.approx(other.nll, abs=1e-5), other.accuracy)
    everyone, plain = tiny.complement([]), score_known_answer(tiny, prompt).nll
    assert score_known_answer(tiny, prompt, []).nll == plain
    assert score_known_answer(tiny, prompt, everyone).nll != pytest.approx(plain, abs=1e-6)
    some, late = (score_known_answer(tiny, prompt, [(0, 0), (1, 2)], when).nll for when in ("all", "decode"))
    assert some != late, "the prompt is left as it was"


def test_generating_sees_one_row_per_token_and_stops_at_a_line_break(tiny, prompt):
    answered = generate_answer(tiny, prompt, steps=12)
    assert len(answered.top_positions) == len(answered.tokens) <= 12
    assert "\n" not in tiny.tokenizer.decode(answered.tokens)
    greedy = tiny.model(tiny.tensor([[*prompt.ids, *answered.tokens]]))[0, len(prompt.ids) - 1 : -1].argmax(-1)
    assert greedy.tolist() == answered.tokens


def test_an_answer_that_the_prompt_does_not_hold_credits_no_head_and_its_recall_stays_a_share(context):
    needle = {"sentence": "The reeds wait.", "question": "Who waits?", "answer": "QQQQ ZZZZ 99"}
    asked = {"protocol": "niah", "needles": [needle], "lengths": [350], "depths": [50], "hide": []}
    report = ask(retrieval_heads.RetrievalHeads, context, **asked, teacher_forced=False, steps=2)
    assert (report.scalars["dropped"].value, report.grid("needle").values) == (1, [[0.0]])


@pytest.mark.parametrize("length", [1, 200])
def test_a_length_without_room_for_prose_around_its_needle_is_refused(tiny, length):
    spec = retrieval_heads.RetrievalHeadsSpec(protocol="niah", lengths=[length])
    with pytest.raises(InvalidOption, match="no room for prose") as refused:
        next(draw_samples(spec, tiny))
    assert refused.value.field == "lengths"


@pytest.mark.parametrize(("size", "heads", "draws"), [(2, 12, 10), (6, 12, 1), (7, 12, 0), (60, 270, 10)])
def test_controls_are_as_many_heads_none_of_which_is_hidden_and_one_head_is_the_least(size, heads, draws):
    found = draw_controls(retrieval_heads.RetrievalHeadsSpec(hide=[size]), size, heads)
    assert [len(ranks) for ranks in found] == [size] * draws
    assert all(size <= rank < heads for ranks in found for rank in ranks)
    with pytest.raises(ValidationError, match="hide"):
        retrieval_heads.RetrievalHeadsSpec(hide=[size - 60])


def test_texts_that_begin_alike_are_read_from_where_they_part():
    ids = list(range(3 * BLOCK_TOKENS + 40))
    other = [*ids[: 2 * BLOCK_TOKENS + 7], *reversed(ids[2 * BLOCK_TOKENS + 7 :])]
    blocks = [range(at, at + BLOCK_TOKENS) for at in (0, BLOCK_TOKENS, 2 * BLOCK_TOKENS)]
    tail = range(3 * BLOCK_TOKENS, len(ids))
    assert plan_pieces([], ids, 10) == [*blocks, tail]
    assert plan_pieces(other, ids, 10)[0].start == 2 * BLOCK_TOKENS
    assert plan_pieces(ids[: 3 * BLOCK_TOKENS], ids, 10) == [tail]
    last = plan_pieces(ids, ids, BLOCK_TOKENS)[-1]
    assert last == range(2 * BLOCK_TOKENS, len(ids)), "the last rows are read together"
    assert plan_pieces(ids, ids[:20], 20) == [range(20)]
    assert plan_pieces(other, ids, 10, together=True) == [blocks[2], tail]
    assert plan_pieces([], ids, 10, together=True)[0] == range(3 * BLOCK_TOKENS)
    assert len(plan_pieces(ids, ids, 10, together=True)) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_was_read_before_changes_no_bit_of_an_answer(tiny, dtype):
    """In float64 oneDNN serves no products, and blocks are read one by one."""
    tiny = replace(tiny, model=copy.deepcopy(tiny.model).to(dtype))
    assert tiny.rows_are_independent is (dtype != torch.float64)
    needles = [build_needle_prompt(tiny.tokenizer, NEEDLES[0], 1500, depth) for depth in (40, 80, 100)]
    reader = PrefixReader(tiny)
    together = [trace_known_answer(reader, prompt) for prompt in needles]
    alone = [trace_known_answer(PrefixReader(tiny), prompt) for prompt in needles]
    assert plan_pieces(needles[0].ids, needles[1].ids, 1)[0].start >= BLOCK_TOKENS, "or nothing was shared"
    for one, other in zip(together, alone, strict=True):
        assert one.score == other.score
        assert (one.top_positions == other.top_positions).all()


def test_rows_of_sliding_layers_end_with_their_window():
    """Gemma's local layers see a window; so do the rows that are shown, and the values that are mixed."""
    torch.manual_seed(0)
    sizes = {"vocab": 40, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 24, "positions": 64}
    model = gemma3(**sizes, head_dim=8, window=4, every=2).eval()
    ids, seen = torch.randint(40, (1, 20)), {}
    logits = visit_patterns(model, ids, lambda layer, _start, rows: seen.setdefault(layer, rows))
    assert torch.equal(logits, model(ids, keep=1))
    local = next(l for l, window in enumerate(model.config.windows) if window)
    assert (seen[local][0, :, -1] > 0).sum(-1).tolist() == [4, 4]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sinks_and_column_means_equal_the_golden_ones(family):
    facts = read("attention_sinks.json")["models"][family]
    patterns = read_golden(WEIGHTS / f"tiny_{family}_attention.arrays")
    layers = [patterns[f"layer{layer}"] for layer in range(3)]
    for threshold in ("0.05", "0.1", "0.2"):
        found = [attention_sinks.sinks(layer, float(threshold)) for layer in layers]
        assert found == facts["sinks[threshold][layer][head]"][threshold]
    found = [attention_sinks.column_mass(layer) for layer in layers]
    assert np.abs(np.array(found) - facts["column_means"]).max() < 1e-6


def _random_pattern(*shape: int) -> np.ndarray:
    scores = np.random.default_rng(0).standard_normal(shape)
    scores[..., ~np.tri(shape[-1], dtype=bool)] = -np.inf
    rows = np.exp(scores - scores.max(-1, keepdims=True))
    return rows / rows.sum(-1, keepdims=True)


def test_tails_hide_the_last_positions_cached_columns_are_divided_by_all_queries_and_tensors_of_any_type_taken():
    pattern = _random_pattern(4, 18, 18)
    early = [[j for j in head if j < 13] for head in attention_sinks.sinks(pattern)]
    assert early == attention_sinks.sinks(pattern, tail=5)
    whole = _random_pattern(2, 12, 12)
    tail = whole[:, 7:]
    assert np.allclose(attention_sinks.column_mass(tail)[:, :7], tail.sum(1)[:, :7] / 5)
    assert np.allclose(attention_sinks.column_mass(tail)[:, 7:], attention_sinks.column_mass(whole)[:, 7:])
    pattern = torch.from_numpy(_random_pattern(2, 20, 20))
    for rows in (pattern.bfloat16(), pattern.clone().requires_grad_()):
        assert attention_sinks.sinks(rows) == attention_sinks.sinks(rows.detach().double().numpy())


def test_masses_in_blocks_equal_those_of_the_whole_pattern_and_are_means_of_queries_whose_window_holds_the_token(tiny):
    ids = tiny.encode("a" * 40 + "bcd" * 60 + "the end of it")
    whole = trace(tiny.model, tiny.tensor([ids]), capture=[f"pattern.{l}" for l in range(tiny.layers)])
    expected = np.stack([attention_sinks.column_mass(whole[f"pattern.{l}"][0]).numpy() for l in range(tiny.layers)])
    assert np.abs(attention_sinks.column_masses(tiny, ids) - expected).max() < 1e-6
    sizes = {"vocab": 256, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 48, "positions": 128}
    model = gemma3(**sizes, layers=3, head_dim=8, window=9, every=3, query_scale=8.0).eval()
    mass, at = attention_sinks.column_masses(replace(tiny, model=model), list(range(60))), np.arange(60)
    for layer, window in enumerate((9, 9, 60)):
        readers = np.minimum(60 - at, window)
        assert np.allclose((mass[layer] * readers).sum(-1), 60)  # the rows of attention sum to 1


def test_hiding_a_position_from_no_head_of_a_layer_changes_only_what_it_says(context):
    report = ask(attention_sinks.AttentionSinks, context, text="the reeds wait for the wind", remove=0, heads=[[2, 1]])
    found = {name: scalar.value for name, scalar in report.scalars.items()}
    assert found["nll_change"] == pytest.approx(found["nll_without"] - found["nll"]) != 0
