"""Agreement is exact on the oracles' numbers, and undefined is None."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relevance_judge.metrics.agreement import agree, cohen_kappa, confusion, krippendorff_alpha

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
        assert found.confusion.tolist() == row["confusion"]
        for measure in ("kappa", "kappa_linear", "kappa_quadratic", "alpha", "bias", "mae"):
            assert _same(getattr(found, measure), row[measure]), (name, measure)
        assert found.bias_by_grade == pytest.approx(row["bias_by_grade"], abs=1e-9)
        assert found.kappa_by_cut == pytest.approx(row["kappa_by_cut"], abs=1e-9)
        assert found.alpha_by_cut == pytest.approx(row["alpha_by_cut"], abs=1e-9)


def test_published_label_counts_are_those_of_the_raw_labels_inside_the_scale(golden, released):
    for name, row in golden("llmjudge/published_rows.json")["rows"].items():
        values = list(released(name).values())
        assert [values.count(grade) for grade in range(4)] == [row[f"n{grade}"] for grade in range(4)], name


def test_a_judge_is_joined_on_pairs_and_its_gaps_and_extras_are_counted():
    reference = {("q1", "a"): 0, ("q1", "b"): 3, ("q2", "a"): 1}
    found = agree(reference, {("q1", "b"): 10, ("q1", "a"): -1, ("q9", "a"): 2})
    assert (found.pairs, found.missing, found.extra, found.clamped) == (2, 1, 1, 2)
    assert found.confusion.tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]]
    assert (found.kappa_by_query, found.bias_by_grade) == ({"q1": 1.0}, [0.0, None, None, 0.0])


def test_nothing_in_common_is_undefined_everywhere_and_no_crash():
    found = agree({("q", "a"): 1}, {})
    assert (found.kappa, found.alpha, found.bias, found.mae) == (None, None, None, None)
    assert set(found.kappa_by_cut.values()) == {None}


def test_labels_outside_the_scale_and_unequal_lists_are_refused():
    with pytest.raises(ValueError, match="outside"):
        cohen_kappa([4], [0])
    with pytest.raises(ValueError, match="1 labels against 2"):
        cohen_kappa([1], [0, 1])
    with pytest.raises(ValueError, match="outside"):
        krippendorff_alpha([[0, 7], [0, 1]])
    with pytest.raises(ValueError, match="raters"):
        krippendorff_alpha([])


@given(Pairs, st.sampled_from([None, "linear", "quadratic"]))
def test_kappa_is_symmetric_and_at_most_one(pairs, weights):
    a, b = zip(*pairs, strict=True)
    found = cohen_kappa(a, b, weights=weights)
    assert _same(found, cohen_kappa(b, a, weights=weights))
    assert found is None or found <= 1 + 1e-12


@given(Pairs, st.integers(2, 4))
def test_repeating_all_units_changes_nothing_for_kappa(pairs, times):
    a, b = zip(*pairs, strict=True)
    assert _same(cohen_kappa(a, b), cohen_kappa(a * times, b * times))


@given(st.data(), st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_does_not_change_when_raters_or_units_change_places(data, level):
    grade = st.one_of(st.none(), st.integers(0, 3))
    units = data.draw(st.lists(st.tuples(grade, grade, grade), min_size=1, max_size=25))
    moved = data.draw(st.permutations(units))
    order = data.draw(st.permutations(range(3)))
    found = krippendorff_alpha(list(zip(*units, strict=True)), level=level)
    rows = list(zip(*moved, strict=True))
    assert _same(found, krippendorff_alpha([rows[rater] for rater in order], level=level))


@given(Pairs, st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_ordinal_alpha_does_not_change_under_a_monotone_relabelling(pairs, steps):
    scale = [sum(steps[: grade + 1]) for grade in range(4)]
    a, b = zip(*pairs, strict=True)
    renamed = [[scale[grade] for grade in side] for side in (a, b)]
    assert _same(krippendorff_alpha([a, b]), krippendorff_alpha(renamed, grades=scale))


def test_kappa_of_independent_raters_is_about_zero():
    draw = np.random.default_rng(7)
    assert cohen_kappa(draw.integers(0, 4, 20_000), draw.integers(0, 4, 20_000)) == pytest.approx(0, abs=0.02)


def test_weighted_kappa_weighs_by_the_values_of_the_scale_also_when_a_grade_is_absent():
    # By ranks among the grades that occur, 1 against 3 would weigh as 1 against 2 does.
    absent, present = (
        cohen_kappa([0, 1, 3], [0, 3, 3], weights="linear"),
        cohen_kappa([0, 1, 2], [0, 2, 2], weights="linear"),
    )
    assert absent == pytest.approx(1 - 2 / (14 / 3))
    assert present == pytest.approx(1 - 1 / (9 / 3))
