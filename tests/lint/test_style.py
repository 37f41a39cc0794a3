"""Lints: style, words, devices, bounds of caches, lines of packages."""

import ast
import pathlib
import re
import subprocess
import tomllib

import pytest

from tests.lint import budget, devices, style


@pytest.mark.parametrize(("read", "text", "advice"), [
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
])  # fmt: skip
def test_a_habit_is_found_in_every_kind_of_text(read, text, advice):
    found = [cure for _, sentence in read(text) for habit, cure in style.HABITS.items() if re.search(habit, sentence)]
    assert advice in found


def test_plain_sentences_and_code_are_left_alone():
    plain = ("There is no queue.", "What is a head?", "It is no longer there.", "```\nWhat it says\n```", "v0.87")
    sentences = [sentence for text in (*plain, "Use `beside`.") for _, sentence in style.read_page(text)]
    assert not [one for one in sentences for habit in style.HABITS if re.search(habit, one)]


def test_an_area_above_its_budget_fails_and_one_below_does_not(monkeypatch, capsys):
    monkeypatch.setattr(style, "find_habits", lambda _: {"pages": ["a.md:1: What is it"], "code": ["b.py:2: x"]})
    monkeypatch.setattr(style, "read_budget", lambda _: {"pages": 0, "code": 1})
    assert style.main([]) == 1
    said = capsys.readouterr().out
    assert "a.md:1: What is it" in said
    assert "b.py" not in said


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


def test_pages_stay_within_their_budget_counted_without_code_and_links():
    page = "# One two\n\n[three](http://x.org/four) <!--=a.b-->5.0<!--/--> it's\n\n```bash\nfovea segment x\n```\n"
    assert count_words(page) == 5
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = [ROOT / name for name in listed.split() if not GENERATED.fullmatch(name) and (ROOT / name).exists()]
    words = {page.relative_to(ROOT).as_posix(): count_words(page.read_text("utf8")) for page in pages}
    total, budget = sum(words.values()), tomllib.loads((ROOT / "lint-budget.toml").read_text("utf8"))["words"]["pages"]
    longest = sorted(words.items(), key=lambda one: -one[1])[:5]
    assert total <= budget, f"{total} words, {budget} allowed; remove some, for example in {longest}"
    assert total > budget - SLACK, f"{total} words: lower the budget of {budget} in lint-budget.toml"


def found(source: str) -> list[str]:
    return [f"{function}: {ast.unparse(call)}" for function, call in devices.iter_factories(ast.parse(source))]


def test_factories_without_a_device_are_found_and_others_left_alone():
    source = """
x = torch.zeros(3)
def f(a):
    y = torch.arange(3, device=a.device) + torch.tensor([1])
    class C:
        def g(self): return torch.from_numpy(a)
"""
    assert found(source) == ["<module>: torch.zeros(3)", "f: torch.tensor([1])", "g: torch.from_numpy(a)"]
    source = """
def __init__(self):
    self.w = nn.Parameter(torch.randn(3) * 0.02)
    self.register_buffer("m", norm(torch.randn(3)))
    self.z = x.new_zeros(3) + torch.zeros_like(x) + np.zeros(3) + torch.empty(3, device="cpu")
"""
    assert found(source) == []


def test_the_tree_has_none_but_those_of_the_exceptions_each_of_which_is_needed():
    found = [devices.find_exception(file, function) for file, function, _ in devices.iter_without_device()]
    assert None not in found
    assert set(found) == devices.EXCEPTIONS.keys()


FEW = {
    "_batch_size": "services and models", "_card": "GPUs of the machine", "_chosen": "back ends, types and devices",
    "_absent": "back ends",
    "_load_model": "names of weights that come with the product",
    "_load_network": "names of weights that come with the product", "_mini_leaderboard": "columns",
    "count": "lives as long as the one group of samples that it is made for",
    "entries": "groups of entry points and services", "inline_refs": "types of this code",
    "read_measurements": "files that come with the product", "shared_memory": "settings of the process",
    "words_of": "kinds of words",
}  # fmt: skip
"""Functions under an unbounded cache, and what their arguments are."""


def cached():
    for room in ("fovea", "shared", "services", "plugins"):
        for file in (ROOT / room).rglob("*.py"):
            text = file.read_text("utf8")
            if "tests" in file.parts or "cache" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(d) for d in node.decorator_list):
                    yield file, node, " ".join(map(ast.unparse, node.decorator_list))


def needs_a_bound(node, decorators):
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    is_bounded = "maxsize=" in decorators and "maxsize=None" not in decorators
    return arguments and not is_bounded and "cached_property" not in decorators and node.name not in FEW


def test_a_cache_has_a_bound_or_few_arguments_and_the_list_names_none_that_is_gone():
    caches = list(cached())
    found = [f"{file.relative_to(ROOT)}: {node.name}" for file, node, text in caches if needs_a_bound(node, text)]
    assert not found, "these need @lru_cache(maxsize=…)"
    assert FEW.keys() <= {node.name for _, node, _ in caches}


@pytest.fixture
def tree(tmp_path):
    files = {"fovea/cli/a.py": 2, "services/eye/a.py": 3, "services/eye/tests/test_a.py": 9, "shared/settings.py": 1}
    for name, lines in {**files, "plugins/more/fovea_more/a.py": 4, "plugins/more/tests/test_b.py": 9}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * lines)
    assert budget.main(tmp_path, write=True) == 0
    return tmp_path


def read(tree):
    return tomllib.loads((tree / budget.FILE).read_text())


def test_lines_are_counted_without_tests_and_a_package_that_grows_or_is_new_is_found(tree, capsys):
    assert read(tree) == {"core": {"fovea": 2, "services.eye": 3, "shared": 1}, "plugins": {"more": 4}}
    (tree / "services/eye/b.py").write_text("y = 1\n")
    assert budget.main(tree) == 1
    assert "services.eye has 4 lines and may have 3" in capsys.readouterr().out
    assert (budget.main(tree, write=True), read(tree)["core"]["services.eye"]) == (1, 3)
    (tree / "services/eye/a.py").write_text("")  # what shrinks loses what it had
    assert (budget.main(tree, write=True), read(tree)["core"]["services.eye"]) == (0, 1)
    (tree / "shared/new").mkdir()
    (tree / "shared/new/a.py").write_text("x = 1\n")
    assert budget.main(tree) == 1


@pytest.mark.parametrize("line", ["import fovea_more\n", "from fovea_more.a import x\n", "import os, fovea_more.a\n"])
def test_an_import_of_a_plug_in_by_the_core_is_found(tree, line, capsys):
    (tree / "shared/settings.py").write_text(line)
    assert budget.main(tree) == 1
    assert "shared/settings.py:1: the core imports the plug-in fovea_more" in capsys.readouterr().out
