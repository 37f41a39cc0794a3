"""Words of pages that people write: fewer of them are read more often, so the budget only shrinks."""

import pathlib
import re
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
GENERATED = re.compile(
    r"docs/(models/.*|20-scale|benchmarks|compatibility|gpu-.*|leaderboard.*|mutation|settings|tensorrt-operators|test-report)\.md"
    r"|loadtests/simulation/.*_template\.md|CHANGELOG\.md"
)
"""Pages that a program writes, with the texts that it puts into them, and the changelog, which only grows."""

SLACK = 1500
"""Words below the budget from which on the budget is lowered."""


def count_words(text):
    """Words of the prose and tables of a page, without its code, the addresses of links, and the keys of figures."""
    for pattern in (r"(?ms)^ *```.*?^ *```", r"<!--.*?-->", r"(?<=\])\([^)]*\)"):
        text = re.sub(pattern, "", text)
    return len(re.findall(r"\w[\w'’.,-]*", text))


def test_words_are_counted_without_code_links_and_keys():
    page = "# One two\n\n[three](http://x.org/four) <!--=a.b-->5.0<!--/--> it's\n\n```bash\nfovea segment x\n```\n"
    assert count_words(page) == 5


def test_pages_stay_within_their_budget():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = [ROOT / name for name in listed.split() if not GENERATED.fullmatch(name) and (ROOT / name).exists()]
    words = {page.relative_to(ROOT).as_posix(): count_words(page.read_text("utf8")) for page in pages}
    total, budget = sum(words.values()), tomllib.loads((ROOT / "lint-budget.toml").read_text("utf8"))["words"]["pages"]
    longest = sorted(words.items(), key=lambda one: -one[1])[:5]
    assert total <= budget, f"{total} words, {budget} allowed; remove some, for example in {longest}"
    assert total > budget - SLACK, f"{total} words: lower the budget of {budget} in lint-budget.toml"
