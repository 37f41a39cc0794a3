"""Parser of grades in a model's answer: five rules in a fixed order, the first that fires decides.

    tag    "##final score: 2"            the last tag counts
    json   {"O": 2}                      the last object with a known key
    label  "Score: 2", "O: 2"            final and overall scores before any other
    bare   "2"                           the whole text is the number
    none                                 absent

An answer without a valid grade is invalid and says why; it is never 0. Total on any string, and linear: no pattern
nests quantifiers.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Rule = Literal["tag", "json", "label", "bare", "none"]
Reason = Literal["absent", "truncated", "not_a_number", "not_an_integer", "out_of_range", "ambiguous"]


@dataclass(frozen=True)
class ParsedGrade:
    """The grade, or why there is none, and the rule that decided."""

    grade: int | None
    rule: Rule
    reason: Reason | None = None


# One separator between a label and its number: a bracketed remark, a word or sign, an opening quote or bracket.
_SEP = r"[ \t]*(?:\([^()\n]*\)[ \t]*)?(?:(?:is|of|was|as|:=|:|=|->|→)\s*)?[\"'“‘(\[]?\s{0,5}"
_NUMBER = r"[+-]?\d++(?:\.\d++)?+"  # possessive: no part of "25th" is a number
_AFTER = r"(?P<scale>[ \t]*(?:/|out of)[ \t]*(?P<top>\d+))?(?P<range>[ \t]*(?:-|–|to\b|or\b)[ \t]*\d)?"
_VALUE = rf"{_SEP}(?:(?P<number>{_NUMBER})(?![A-Za-z]){_AFTER})?"

_TAG = re.compile(rf"##[ \t]*final score{_VALUE}", re.IGNORECASE)
_LABELLED = rf"{_SEP}(?<![A-Za-z])(?P<number>{_NUMBER})(?![A-Za-z]){_AFTER}"
_FIRST = re.compile(
    rf"(?:(?<![^\W_])(?:final score|final grade|overall score|overall)|^[ \t]*(?-i:O)){_LABELLED}",
    re.IGNORECASE | re.MULTILINE,
)
_SECOND = re.compile(
    r"(?<![^\W_])(?:relevance (?:score|category|grade|label|level)|score|relevance|grade|rating|label|category|answer)"
    rf"{_LABELLED}",
    re.IGNORECASE,
)
_BARE = re.compile(rf"[\"'“‘(\[]?\s*(?P<number>{_NUMBER})\s*[\"'”’)\]]?\.?")
_FENCE = re.compile(r"```[a-z0-9]*", re.IGNORECASE)
_THOUGHT = re.compile(r"<(/?)think>", re.IGNORECASE)

_KEYS = ("o", "overall", "final score", "score", "relevance score", "relevance", "grade", "label", "rating")
_BRACE = re.compile(r"\{(?=\s*[\"}])")
_BRACES = 1000
"""How many braces are tried, from the end: more is an attack, not an answer."""

_DIGITS = 18
"""Longer numbers are out of any scale; they are not converted."""


def parse(answer: str, *, lowest: int = 0, highest: int = 3) -> ParsedGrade:
    """The grade that an answer states on the scale `lowest`…`highest` and the rule that found it, or why there is none.

    "2/3" and "2 out of 3" are allowed only with the highest grade as the second number.
    """
    text = unicodedata.normalize("NFKC", answer).replace("\u2212", "-")
    answer_text = _strip_thoughts(text)
    if answer_text is None:
        return ParsedGrade(None, "none", "truncated")
    text = _FENCE.sub("", answer_text).replace("*", "").replace("`", "").replace("_", " ")
    for rule in (_by_tag, _by_json, _by_label, _by_itself):
        if found := rule(text, lowest, highest):
            return found
    return ParsedGrade(None, "none", "absent")


def _strip_thoughts(text: str) -> str | None:
    """The text without what lies between think marks, or None when one is never closed."""
    parts, since, depth = [], 0, 0
    for mark in _THOUGHT.finditer(text):
        if mark[1] and depth:
            since, depth = mark.end(), 0
        elif not mark[1] and not depth:
            parts.append(text[since : mark.start()])
            depth = 1
    return None if depth else "".join([*parts, text[since:]])


def _by_tag(text: str, lowest: int, highest: int) -> ParsedGrade | None:
    tags = list(_TAG.finditer(text))
    if tags and tags[-1]["number"] is None:
        return ParsedGrade(None, "tag", "not_a_number")
    return _check_context("tag", tags[-1], lowest, highest) if tags else None


def _by_json(text: str, lowest: int, highest: int) -> ParsedGrade | None:
    for value in _objects(text):
        known = {str(key).lower().replace("_", " ").strip(): item for key, item in value.items()}
        if key := next((key for key in _KEYS if key in known), None):
            return _json_value(known[key], lowest, highest)
    return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects of the text, by where they start, the last first (inner before outer)."""
    decoder = json.JSONDecoder()
    starts = [match.start() for match in _BRACE.finditer(text)]
    for start in starts[: -_BRACES - 1 : -1]:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _json_value(value: Any, lowest: int, highest: int) -> ParsedGrade:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _check_number("json", str(int(value) if value % 1 == 0 else value), lowest, highest)
    if isinstance(value, str) and re.fullmatch(rf"\s*{_NUMBER}\s*", value):
        return _check_number("json", value.strip(), lowest, highest)
    return ParsedGrade(None, "json", "not_a_number")


def _by_label(text: str, lowest: int, highest: int) -> ParsedGrade | None:
    for pattern in (_FIRST, _SECOND):
        if hits := list(pattern.finditer(text)):
            return _check_context("label", hits[-1], lowest, highest)
    return None


def _by_itself(text: str, lowest: int, highest: int) -> ParsedGrade | None:
    match = _BARE.fullmatch(text.strip())
    return match and _check_number("bare", match["number"], lowest, highest)


def _check_context(rule: Rule, match: re.Match[str], lowest: int, highest: int) -> ParsedGrade:
    """Check a number with what follows it: a scale ("/3"), or a range ("2-3") that makes it ambiguous."""
    if match["range"]:
        return ParsedGrade(None, rule, "ambiguous")
    if match["scale"] and (len(match["top"]) > _DIGITS or int(match["top"]) != highest):
        return ParsedGrade(None, rule, "out_of_range")
    return _check_number(rule, match["number"], lowest, highest)


def _check_number(rule: Rule, number: str, lowest: int, highest: int) -> ParsedGrade:
    whole, _, decimals = number.partition(".")
    if not re.fullmatch(r"[+-]?\d+", whole) or decimals.strip("0"):
        return ParsedGrade(None, rule, "not_an_integer")
    if len(whole.lstrip("+-").lstrip("0")) > _DIGITS or not lowest <= int(whole) <= highest:
        return ParsedGrade(None, rule, "out_of_range")
    return ParsedGrade(int(whole), rule)
