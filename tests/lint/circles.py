"""`python -m tests.lint.circles`: no module imports itself by way of others. Reads import-linter's own graph."""

import sys
from importlib.util import find_spec
from pathlib import Path

import grimp

PLUGINS = sorted(file.parent.name for file in Path(__file__).parents[2].glob("plugins/*/fovea_*/__init__.py"))
PACKAGES = ("fovea", "services", "shared", *(name for name in PLUGINS if find_spec(name) is not None))


def find_circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of modules that reach each other by imports, each sorted by name (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph.find_modules_directly_imported_by(module)):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph.modules):
        if module not in order:
            visit(module)
    return found


def main() -> None:
    """Print every circle; the exit code says whether there are any."""
    sys.setrecursionlimit(10_000)
    found = find_circles(grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False))
    for group in found:
        print("circle:", ", ".join(group))
    print(f"{len(found)} circles of imports." if found else "No import circle.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
