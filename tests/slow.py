"""`python -m tests.slow JUNIT.xml`: which tests `make check` leaves out, by what a run of all of them took.

Writes `tests/slow.txt`, which `conftest.py` reads: the quickest test functions stay, as many as fit into the budget.
`make test ARGS=--junitxml=all.xml` writes such a file.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests/slow.txt"

BUDGET_S = 235.0
"""Seconds that the tests of one worker may take on a quiet machine, beside what finding them costs."""


def read_durations(report: Path) -> Counter[str]:
    """Seconds by test function, all parameters together, fixtures included."""
    found = Counter[str]()
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest's own
        place, name = str(case.get("classname")).replace(".", "/"), str(case.get("name")).partition("[")[0]
        if not (ROOT / f"{place}.py").is_file():  # a class in a module
            place, _, owner = place.rpartition("/")
            name = f"{owner}::{name}"
        found[f"{place}.py::{name}"] += float(case.get("time", 0))
    return found


def list_slow(durations: Mapping[str, float], budget: float) -> list[str]:
    """Those that are left out when the quickest are taken until the budget is spent."""
    slow, spent = [], 0.0
    for name, seconds in sorted(durations.items(), key=lambda one: one[1]):
        spent += seconds
        if spent > budget:
            slow.append(name)
    return sorted(slow)


def main() -> None:
    """Write the list; what was in it and was not run now stays."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow", description=__doc__)
    parser.add_argument("report", type=Path, help="what pytest wrote with --junitxml")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds that one worker may take")
    asked = parser.parse_args()
    durations = read_durations(asked.report)
    before = LIST.read_text("utf8").split() if LIST.is_file() else []
    kept = [name for name in before if name not in durations and (ROOT / name.partition("::")[0]).is_file()]
    found = sorted({*kept, *list_slow(durations, asked.budget)})
    LIST.write_text("\n".join(found) + "\n", "utf8")
    print(f"{len(found)} of {len({*durations, *before})} test functions are slow.")


if __name__ == "__main__":
    main()
