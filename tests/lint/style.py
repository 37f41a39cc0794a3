"""`python -m tests.lint.style [--list AREA] [--write]`: sentences that read like a translation.

Reads the pages, docstrings, comments, messages, help texts and console texts, and counts habits of `HABITS` by area.
`lint-budget.toml` has the number that each area may have: zero for pages, and less at each change elsewhere.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = "lint-budget.toml"
HABITS = {
    r"^(What|Those|That of|Whoever|Who|As always)\b(?!.*\?$)": "begin with a noun or a verb",
    r"\b(beside|learnt|says? so|owe[ds]|strays|(is|are) told)\b": "use the field's word",
    r"\bwanted\)": "write (target X)", r"(?<![\d\w./*:\\-])\.\d+(?![\w.])": "write 0.87",
    r"\d ×(?! ?\d)": "write 2.1×", r"(?<![Tt]here )\bis no (?!longer|more|other|need)": "write is not a",
    r"^Of (a|an|the|each) [\w ]{2,30}, ": "use the usual order",
}  # fmt: skip
"""Each habit (a pattern over one sentence) with its cure."""

AREAS = ("pages", "code", "tests", "console")
GENERATED = re.compile(
    r"docs/(models/|leaderboard|benchmarks|settings|mutation|gpu-|tensorrt-|compatibility|test-report)"
)
"""Pages whose sentences stand in the code that writes them."""

_SENTENCE = re.compile(r"(?<=[.:;!?])\s+(?=[A-Z])")


def list_files(root: Path, *patterns: str) -> list[Path]:
    command = ("git", "ls-files", "--", *patterns)
    return [root / name for name in subprocess.check_output(command, cwd=root, text=True).split()]


def read_page(text: str) -> Iterator[tuple[int, str]]:
    """Line and sentence of a page; code, markers and addresses are blank."""
    hidden = re.compile(r"^```.*?^```|<!--.*?-->", re.DOTALL | re.MULTILINE)
    blank = hidden.sub(lambda found: "\n" * found[0].count("\n"), text)
    blank = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "x", blank)
    for number, line in enumerate(blank.splitlines(), 1):
        for cell in line.split("|"):
            yield from ((number, sentence) for sentence in _SENTENCE.split(cell.strip().lstrip("#>*-0123456789. ")))


def read_python(text: str) -> Iterator[tuple[int, str]]:
    """Line and sentence of docstrings, comments and texts of several words."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_sentence(node.value):
            for offset, line in enumerate(node.value.splitlines()):
                yield from ((node.lineno + offset, one) for one in _SENTENCE.split(_without_code(line.strip())))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from ((token.start[0], one) for one in _SENTENCE.split(_without_code(token.string.lstrip("# "))))


def read_template(text: str) -> Iterator[tuple[int, str]]:
    """Line and sentence of the texts of a template or a module of the console."""
    for number, line in enumerate(text.splitlines(), 1):
        for part in re.findall(r">([^<>{}]{12,})<|\"([^\"]{12,})\"|^\s*([A-Z][^<>{}=;]{12,})", line):
            yield from ((number, one) for one in _SENTENCE.split(_without_code("".join(part).strip())))


def find_habits(root: Path = ROOT) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {area: [] for area in AREAS}
    for file in list_files(root, "*.md", "*.py", "*.html", "*.js"):
        name = str(file.relative_to(root))
        if GENERATED.match(name) or "vendor" in name or "_pb2" in name or name.startswith("tests/lint/"):
            continue
        if file.suffix == ".md":
            area, sentences = "pages", read_page(file.read_text("utf8"))
        elif file.suffix == ".py":
            in_tests = "tests" in file.parts or file.name == "conftest.py"
            area, sentences = "tests" if in_tests else "code", read_python(file.read_text("utf8"))
        else:
            area, sentences = "console", read_template(file.read_text("utf8"))
        found[area] += [
            f"{name}:{line}: {sentence[:90]} ({advice})"
            for line, sentence in sentences
            for habit, advice in HABITS.items()
            if re.search(habit, sentence)
        ]
    return found


def _is_sentence(text: str) -> bool:
    return text.count(" ") >= 3 and text.strip()[:1].isupper() and "{{" not in text


def _without_code(line: str) -> str:
    return re.sub(r"`[^`]*`", "x", line)


def read_budget(root: Path) -> dict[str, int]:
    return dict(tomllib.loads((root / FILE).read_text("utf8")).get("style", {}))


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Print the complaints of areas that exceed their budget; return how many such areas there are."""
    found, budget = find_habits(root), read_budget(root)
    if arguments[:1] == ["--list"]:
        sys.stdout.write("\n".join(found[arguments[1]]) + "\n")
        return 0
    if arguments == ["--write"]:
        limits = {area: min(len(found[area]), budget.get(area, len(found[area]))) for area in AREAS}
        kept = re.sub(r"\n\[style\].*", "", (root / FILE).read_text("utf8"), flags=re.DOTALL).rstrip()
        part = "".join(f'"{area}" = {limit}\n' for area, limit in limits.items())
        (root / FILE).write_text(f"{kept}\n\n[style]\n{part}", "utf8")
        return 0
    above = {area: complaints for area, complaints in found.items() if len(complaints) > budget.get(area, 0)}
    for area, complaints in above.items():
        sys.stdout.write("\n".join(complaints) + f"\n{area}: {len(complaints)}, of at most {budget.get(area, 0)}\n")
    if not above:
        sys.stdout.write(f"{sum(map(len, found.values()))} sentences read like a translation, within the budget.\n")
    return len(above)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
