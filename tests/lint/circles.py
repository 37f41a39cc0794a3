"""`python -m tests.lint.circles`: no module imports itself by way of others. Reads import-linter's own graph."""

import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import grimp

PLUGINS = sorted(file.parent.name for file in Path(__file__).parents[2].glob("plugins/*/fovea_*/__init__.py"))
PACKAGES = ("fovea", "services", "shared", *(name for name in PLUGINS if find_spec(name) is not None))


def main() -> None:
    """Print a circle; the exit code says whether there is one."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        sys.exit(f"circle: {', '.join(error.args[1])}")
    print("No import circle.")


if __name__ == "__main__":
    main()
