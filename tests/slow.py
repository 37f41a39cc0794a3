"""`python -m tests.slow PHASES`: which tests `make check` leaves out, by what a full run of the suite measured.

`make test ARGS=--phases=all.phases` writes such a file. The list, `tests/slow.txt`, is written anew each time; the root
`conftest.py` reads it. Quick test functions stay, as many as fit into two minutes. A function costs its calls and its
own set-up, all parameters together; a fixture that several functions share costs once, so a file whose fixtures are
expensive is left out as a whole, and its line is the file's name alone.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests/slow.txt"

CHECK_S = 120.0
"""How long `make check` may take on two quiet cores."""
WORKERS = 2
BALANCE = 0.85
"""The part of the workers' time that is spent in tests: they do not end together, and hand results over."""


@dataclass
class Costs:
    """Seconds of a run on tests and on shared fixtures."""

    own: Counter[str] = field(default_factory=Counter)
    """Seconds by test function."""
    fixtures: Counter[str] = field(default_factory=Counter)
    """Seconds by shared fixture."""
    uses: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The shared fixtures that a function uses."""
    left_out: set[str] = field(default_factory=set)
    """Functions that `make check` leaves out anyhow."""
    collection: float = 30.0
    """Seconds before the first test; this is what they were when the list was made first."""

    def share(self) -> dict[str, float]:
        """Seconds of each function, with its part of the fixtures that it shares with others."""
        users = Counter(name for used in self.uses.values() for name in used)
        parts = {name: seconds / users[name] for name, seconds in self.fixtures.items()}
        return {one: own + sum(parts.get(name, 0) for name in self.uses[one]) for one, own in self.own.items()}


def read_costs(rows: Iterable[Mapping[str, Any]]) -> Costs:
    costs = Costs()
    for row in rows:
        if "::" not in (function := row["test"].partition("[")[0]):
            if not function and row["phase"] == "collection":
                costs.collection = row["seconds"]
            continue
        paid = row.get("paid", {})
        costs.own[function] += max(0.0, row["seconds"] - sum(paid.values()))
        costs.fixtures.update(paid)
        costs.uses[function] |= {*row.get("uses", ()), *paid}
        if row.get("marks"):
            costs.left_out.add(function)
    return costs


def list_slow(costs: Costs, budget: float) -> list[str]:
    """The functions that do not fit when the cheapest are taken first; a file of which none fits, by its own name."""
    quick, spent, share = set[str](), 0.0, costs.share()
    for function in sorted(costs.own.keys() - costs.left_out, key=lambda one: (share[one], one)):
        if (spent := spent + share[function]) <= budget:
            quick.add(function)
    kept = {name.partition("::")[0] for name in quick | costs.left_out}
    slow = costs.own.keys() - costs.left_out - quick
    return sorted({name if name.partition("::")[0] in kept else name.partition("::")[0] for name in slow})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slow", description=__doc__)
    parser.add_argument("phases", type=Path, help="what pytest wrote with --phases in a run of all tests")
    parser.add_argument("--seconds", type=float, default=CHECK_S, help="how long `make check` may take")
    asked = parser.parse_args()
    costs = read_costs(map(json.loads, asked.phases.read_text("utf8").splitlines()))
    budget = WORKERS * BALANCE * (asked.seconds - costs.collection)
    found = list_slow(costs, budget)
    LIST.write_text("".join(f"{name}\n" for name in found), "utf8")
    whole = sum("::" not in name for name in found)
    functions = f"{len(found) - whole} of {len(costs.own)} functions"
    print(f"{functions} and {whole} whole files are slow; budget {budget:.0f} s.")


if __name__ == "__main__":
    main()
