"""The style lint finds habits of a translation in pages, docstrings, comments, messages and console texts."""

import re

import pytest

from tests.lint import style


@pytest.mark.parametrize(
    ("read", "text", "advice"),
    [
        (style.read_page, "Good.\n\n* What outlives a process lies in Redis.", "begin with a noun or a verb"),
        (style.read_page, "| a | it learnt from roads |", "use the field's word"),
        (style.read_page, "It reaches mAP .87 there.", "write 0.87"),
        (style.read_page, "It is 2.1 × faster.", "write 2.1×"),
        (style.read_page, "Dice is 0.86 (0.88 wanted).", "write (target X)"),
        (style.read_page, "This is no model of ours.", "write is not a"),
        (style.read_python, 'def f():\n    """Who asks is told."""', "begin with a noun or a verb"),
        (style.read_python, "x = 1  # Of a film, every frame counts", "use the usual order"),
        (style.read_python, 'raise ValueError("The file x.png is no picture.")', "write is not a"),
        (style.read_template, "<p>Dense attention runs beside every method.</p>", "use the field's word"),
    ],
)
def test_a_habit_is_found_in_every_kind_of_text(read, text, advice):
    found = [cure for _, sentence in read(text) for habit, cure in style.HABITS.items() if re.search(habit, sentence)]
    assert advice in found


@pytest.mark.parametrize(
    "text",
    [
        "There is no queue.", "What is a head?", "It is no longer there.", "```\nWhat it says\n```",
        "Use `beside`.", "v0.87",
    ],
)  # fmt: skip
def test_plain_sentences_and_code_are_left_alone(text):
    assert not [s for _, s in style.read_page(text) for habit in style.HABITS if re.search(habit, s)]


def test_an_area_above_its_budget_fails_and_one_below_does_not(monkeypatch, capsys):
    monkeypatch.setattr(style, "find_habits", lambda _: {"pages": ["a.md:1: What is it"], "code": ["b.py:2: x"]})
    monkeypatch.setattr(style, "read_budget", lambda _: {"pages": 0, "code": 1})
    assert style.main([]) == 1
    said = capsys.readouterr().out
    assert "a.md:1: What is it" in said
    assert "b.py" not in said
