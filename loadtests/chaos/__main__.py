"""`python -m loadtests.chaos [SCENARIO …]`: runs the named scenarios, or all; ends with 1 if any lost something."""

import importlib
import pkgutil
import sys

import loadtests.chaos

SCENARIOS = sorted(
    module.name for module in pkgutil.iter_modules(loadtests.chaos.__path__) if not module.name.startswith("_")
)


def main(names: list[str]) -> int:
    """Run scenarios one after another."""
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        print(f"No scenario {', '.join(sorted(unknown))}. There are: {', '.join(SCENARIOS)}.")
        return 2
    results = [importlib.import_module(f"loadtests.chaos.{name}").main() for name in names or SCENARIOS]
    return max(results, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
