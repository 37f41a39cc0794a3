"""Pages that visitors read first are in plain English: none of the openings and words that read like a translation."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (
    "README.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "ROADMAP.md", "SUPPORT.md", "docs/01-use.md", "docs/status.md",
)  # fmt: skip
HABITS = {
    r"^[\s*|-]*(What|Those|That of|Whoever|Who) (?!we\b)": "begin with a noun or a verb",
    r"\b(beside|learnt|told|says so|owed|strays|room)\b": "use the field's word",
    r"\bwanted\)": "write (target X)",
    r"(?<![\d\w.])\.\d": "write 0.87",
    r"\d ×(?! ?\d)": "write 2.1×",
    r"(?<![Tt]here )\bis no (?!longer)": "write is not a",
}


def prose(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf8"), flags=re.DOTALL)
    return re.sub(r"<!--.*?-->|`[^`\n]*`|\]\([^)]*\)", "", text).splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_first_pages_have_no_habits_of_a_translation(page):
    found = [
        f"{line.strip()[:90]}: {advice}"
        for line in prose(page)
        for habit, advice in HABITS.items()
        if re.search(habit, line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ["What outlives a process", "it learnt from roads", "mAP .87", "2.1 × faster", "(.88 wanted)"]
)
def test_each_habit_is_found(line):
    assert any(re.search(habit, line) for habit in HABITS)
