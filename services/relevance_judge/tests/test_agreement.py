"""Agreement is exact on the oracles' numbers, and undefined is None."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relevance_judge.metrics.agreement import agree, cohen_kappa, confusion, krippendorff_alpha
from services.relevance_judge.metrics.bootstrap import divide_sums, draw_ratios, percentile_interval

Pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def _same(found: float | None, expected: float | None) -> bool:
    return found is expected is None or (None not in (found, expected) and found == pytest.approx(expected, abs=1e-9))


def test_kappa_alpha_and_confusion_match_the_oracles_on_every_pair_of_lists(golden):
    for case in golden("agreement_vectors.json")["pairs"]:
        a, b = case["a"], case["b"]
        assert _same(cohen_kappa(a, b), case["kappa"]), case["name"]
        assert _same(cohen_kappa(a, b, weights="linear"), case["kappa_linear"]), case["name"]
        assert _same(cohen_kappa(a, b, weights="quadratic"), case["kappa_quadratic"]), case["name"]
        for level in ("nominal", "ordinal", "interval"):
            assert _same(krippendorff_alpha([a, b], level=level), case[f"alpha_{level}"]), (case["name"], level)
        assert confusion(a, b).tolist() == case["confusion"]


def test_alpha_of_five_raters_with_gaps_matches_the_oracle_as_lists_and_as_arrays(golden):
    case = golden("agreement_vectors.json")["multi_rater"]
    array = np.asarray(case["matrix"], float)
    for level, expected in case["alpha"].items():
        assert _same(krippendorff_alpha(case["matrix"], level=level), expected)
        assert _same(krippendorff_alpha(array, level=level), expected)


def test_released_label_sets_agree_with_one_of_them_as_the_oracles_say(golden, released):
    told = golden("llmjudge/agreement_with_one_judge.json")
    reference = released(told["reference"])
    for name, row in told["judges"].items():
        found = agree(reference, released(name))
        assert (found.pairs, found.missing, found.extra) == (4423, 0, 0)
        assert (found.clamped, found.counts) == (row["clamped"], row["counts"]), name
        assert found.confusion == row["confusion"]
        for measure in ("kappa", "kappa_linear", "kappa_quadratic", "alpha", "bias", "mae"):
            assert _same(getattr(found, measure), row[measure]), (name, measure)
        assert found.bias_by_grade == pytest.approx(row["bias_by_grade"], abs=1e-9)
        assert found.kappa_by_cut == pytest.approx(row["kappa_by_cut"], abs=1e-9)
        assert found.alpha_by_cut == pytest.approx(row["alpha_by_cut"], abs=1e-9)


def test_alpha_of_all_released_sets_is_the_oracles(released, golden):
    told = golden("llmjudge/agreement_with_one_judge.json")
    names = [told["reference"], *told["judges"]]
    ratings = [[min(max(released(name)[pair], 0), 3) for pair in released(names[0])] for name in names]
    for level, expected in told["alpha_all_33"].items():
        assert _same(krippendorff_alpha(ratings, level=level), expected)


def test_a_judge_is_joined_on_pairs_and_its_gaps_and_extras_are_counted():
    reference = {("q1", "a"): 0, ("q1", "b"): 3, ("q2", "a"): 1}
    found = agree(reference, {("q1", "b"): 10, ("q1", "a"): -1, ("q9", "a"): 2})
    assert (found.pairs, found.missing, found.extra, found.clamped) == (2, 1, 1, 2)
    assert found.confusion == [[1, 0, 0, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]]
    assert (found.kappa_by_query, found.bias_by_grade) == ({"q1": 1.0}, [0.0, None, None, 0.0])


def test_clamped_grades_of_the_judge_and_of_the_reference_are_counted_apart():
    found = agree({("q", "a"): 4, ("q", "b"): -2, ("q", "c"): 3}, {("q", name): 3 for name in "ab"} | {("q", "c"): 9})
    assert (found.clamped, found.clamped_reference) == (1, 2)


def test_nothing_in_common_is_undefined_everywhere_and_no_crash():
    found = agree({("q", "a"): 1}, {})
    assert (found.kappa, found.alpha, found.bias, found.mae) == (None, None, None, None)
    assert set(found.kappa_by_cut.values()) == {None}


@pytest.mark.parametrize(("measure", "labels", "told"), [
    (cohen_kappa, ([4], [0]), "outside"), (cohen_kappa, ([1], [0, 1]), "1 labels against 2"),
    (krippendorff_alpha, ([[0, 7], [0, 1]],), "outside"), (krippendorff_alpha, ([],), "raters"),
])  # fmt: skip
def test_labels_outside_the_scale_and_unequal_lists_are_refused(measure, labels, told):
    with pytest.raises(ValueError, match=told):
        measure(*labels)


@given(Pairs, st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_ordinal_alpha_does_not_change_under_a_monotone_relabelling(pairs, steps):
    scale = [sum(steps[: grade + 1]) for grade in range(4)]
    a, b = zip(*pairs, strict=True)
    renamed = [[scale[grade] for grade in side] for side in (a, b)]
    assert _same(krippendorff_alpha([a, b]), krippendorff_alpha(renamed, grades=scale))


def test_weighted_kappa_weighs_by_the_values_of_the_scale_also_when_a_grade_is_absent():
    # By ranks among the grades that occur, 1 against 3 would weigh as 1 against 2 does.
    assert cohen_kappa([0, 1, 3], [0, 3, 3], weights="linear") == pytest.approx(1 - 2 / (14 / 3))
    assert cohen_kappa([0, 1, 2], [0, 2, 2], weights="linear") == pytest.approx(1 - 1 / (9 / 3))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_of_random_ratings_is_that_of_krippendorff(level):
    krippendorff = pytest.importorskip("krippendorff", reason="pip install krippendorff")
    draw = np.random.default_rng(4)
    ratings = draw.integers(0, 4, (4, 50)).astype(float)
    ratings[draw.random((4, 50)) < 0.2] = np.nan
    oracle = krippendorff.alpha(ratings, value_domain=[0, 1, 2, 3], level_of_measurement=level)
    assert krippendorff_alpha(ratings, level=level) == pytest.approx(oracle)


def test_intervals_hold_as_many_values_as_are_asked_for():
    values = np.append(np.arange(101.0), np.nan)
    assert percentile_interval(values) == pytest.approx((2.5, 97.5))
    assert percentile_interval(values, 0.5) == pytest.approx((25.0, 75.0))
    assert percentile_interval(np.asarray([np.nan])) is None


def test_ratios_are_of_sums_over_the_same_samples_of_queries():
    assert divide_sums({"q1": (1, 2), "q2": (2, 4)}) == 0.5
    assert divide_sums({"q1": (1, 0)}) is divide_sums({}) is None
    whole = {f"q{place}": (float(place), 4.0) for place in range(5)}
    half = {name: (part / 2, size) for name, (part, size) in whole.items()}
    found = draw_ratios([whole, half], draws=50, seed=3)
    assert (found.shape, found[0]) == ((2, 50), pytest.approx(2 * found[1]))
    assert found[0].mean() == pytest.approx(0.5, abs=0.06)
    assert len(set(found[0].tolist())) > 5
    assert (found == draw_ratios([whole, half], draws=50, seed=3)).all()
    assert (found != draw_ratios([whole, half], draws=50, seed=4)).any()
    assert set(draw_ratios([{"q1": (0.25, 0.5)}], draws=3, seed=0)[0]) == {0.5}
    assert np.isnan(draw_ratios([{"q1": (1.0, 0.0)}], draws=3, seed=0)).all()
    one, none = draw_ratios([{"q1": (1.0, 2.0)}, {"q2": (1.0, 1.0)}], draws=40, seed=0)
    assert np.isnan(one).any()
    assert (np.isnan(one) | np.isnan(none)).any()
    assert (set(one[~np.isnan(one)]), set(none[~np.isnan(none)])) == ({0.5}, {1.0})
    assert not (np.isnan(one) & np.isnan(none)).any()
