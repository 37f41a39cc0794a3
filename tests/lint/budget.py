"""`python -m tests.lint.budget [--write]`: the core may only shrink, and imports no plug-in.

`lint-budget.toml` has the lines of Python, outside tests, of every package. More lines than that are a finding; so is a
package that is not listed. `--write` lowers what has shrunk, lists new packages, and raises only plug-ins' numbers.
"""

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = "lint-budget.toml"
CORE = ("fovea", "services", "shared")
HEAD = """\
# Lines of Python, outside tests, that each package may have; `make lint` checks it. The core may only shrink: lower its
# numbers (`python -m tests.lint.budget --write`), never raise them. Code that moves within the core takes its lines
# along. Code that not every installation needs belongs in a plug-in (plugins/README.md), and these may grow.
"""


def iter_files(root: Path) -> Iterator[Path]:
    """Python files of the core and of the plug-ins, outside tests, by path from the root."""
    places = [root / name for name in CORE] + sorted((root / "plugins").glob("*/fovea_*"))
    for file in (file for place in places for file in sorted(place.rglob("*.py"))):
        if "tests" not in file.relative_to(root).parts:
            yield file.relative_to(root)


def count_lines(root: Path = ROOT) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for file in iter_files(root):
        top, *below = file.parts
        package = top if len(below) < 2 or top == "fovea" else f"{top}.{below[0]}"
        part = found.setdefault("plugins" if top == "plugins" else "core", Counter())
        part[package.removeprefix("plugins.")] += (root / file).read_bytes().count(b"\n")
    return {part: dict(sorted(lines.items())) for part, lines in found.items()}


def find_excess(lines: dict[str, dict[str, int]], budget: dict[str, dict[str, int]]) -> list[str]:
    """Complaints about packages of the core that have more lines than they may."""
    return [
        f"{package} has {n} lines and may have {allowed}; remove some, or move a part into a plug-in"
        for package, n in lines["core"].items()
        if n > (allowed := budget.get("core", {}).get(package, 0))
    ]


def find_plugin_imports(root: Path = ROOT) -> list[str]:
    return [
        f"{file}:{line}: the core imports the plug-in {name}"
        for file in iter_files(root)
        if file.parts[0] != "plugins"
        for line, name in iter_imports((root / file).read_text("utf8"))
        if name.startswith("fovea_")
    ]


def iter_imports(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def render(lines: dict[str, dict[str, int]], budget: dict[str, dict[str, int]]) -> str:
    """The file with the core's numbers lowered to what there is, and those of plug-ins as they are."""
    parts = [HEAD]
    for part, packages in lines.items():
        known = budget.get(part, {}) if part == "core" else {}
        limits = {name: min(n, known.get(name, n)) for name, n in packages.items()}
        parts.append(f"\n[{part}]\n" + "".join(f'"{name}" = {n}\n' for name, n in limits.items()))
    return "".join(parts)


def main(root: Path = ROOT, *, write: bool = False) -> int:
    """Print all complaints; return how many there are."""
    file, lines = root / FILE, count_lines(root)
    budget = tomllib.loads(file.read_text("utf8")) if file.exists() else {}
    if write:
        _, style, limits = (file.read_text("utf8") if file.exists() else "").partition("\n[style]\n")
        file.write_text(render(lines, budget) + style + limits, "utf8")
        budget = tomllib.loads(file.read_text("utf8"))
    found = [*find_excess(lines, budget), *find_plugin_imports(root)]
    print(*found or [f"The core has {sum(lines['core'].values()):,} lines, within its budget."], sep="\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(bool(main(write="--write" in sys.argv[1:])))
