"""The parser takes what an answer states, never any stray digit, and survives any text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relevance_judge.parsing.grades import parse


def test_grade_and_rule_of_every_golden_answer(golden):
    for case in golden("parse_cases.json")["cases"]:
        found = parse(case["answer"])
        assert (found.grade, found.rule) == (case["grade"], case["rule"]), case["answer"]


@given(st.text(max_size=400))
def test_it_is_total_and_gives_a_grade_or_a_reason(text):
    found = parse(text)
    assert (found.grade is None) == (found.reason is not None)
    assert found.grade is None or 0 <= found.grade <= 3


@given(st.lists(st.sampled_from(["##final score", ":", "{", "}", '"O"', "score", " 2", "-", "/3", "<think>", "\n"])))
def test_it_is_total_on_texts_made_of_its_own_words(parts):
    found = parse("".join(parts))
    assert (found.grade is None) == (found.reason is not None)


@given(st.integers(0, 3))
def test_a_grade_alone_is_that_grade(grade):
    assert parse(str(grade)).grade == grade


def test_stray_digits_are_no_grade():
    found = parse("I see 3 reasons and 1 doubt, in 2 parts.")
    assert (found.grade, found.rule, found.reason) == (None, "none", "absent")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("##final score: 5", "out_of_range"),
        ("##final score: 2.5", "not_an_integer"),
        ("##final score: high", "not_a_number"),
        ("score: 2-3", "ambiguous"),
        ("score: 2 out of 10", "out_of_range"),
        ("<think> it is 3", "truncated"),
        ("", "absent"),
        ("##final score: " + "9" * 40, "out_of_range"),
        ('{"O": true}', "not_a_number"),
    ],
)
def test_an_invalid_answer_says_why(answer, reason):
    found = parse(answer)
    assert (found.grade, found.reason) == (None, reason)


def test_the_scale_is_an_argument():
    assert (parse("score: 5", highest=5).grade, parse("score: 0", lowest=1).reason) == (5, "out_of_range")
    assert parse("score: 4/5", highest=5).grade == 4


@pytest.mark.parametrize(
    "hostile",
    [
        *(letter * 100_000 for letter in "{ 1("),
        *(word * (100_000 // len(word)) for word in ('{"a":', "##final score", "score ", "<think>")),
        "score:" + " " * 99_000 + "x",
    ],
)
def test_a_hundred_kilobytes_of_anything_take_well_under_a_second(hostile):
    begun = time.process_time()
    parse(hostile)
    assert time.process_time() - begun < 1.0
