"""`python -m loadtests.simulation [cluster] [units] [predict] [days] [grid]`: measures and simulates scale.

Without names all of them, which takes about half an hour; each writes its part of `results.json`, of which
`python -m tests.drift --write` makes docs/20-scale.md. `units` wants `prometheus` on PATH for its part.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from loadtests.bench.result import machine
from loadtests.simulation import cluster, days, grid, predict, units
from loadtests.simulation.fleet import Costs, read_costs
from loadtests.simulation.page import RESULTS, read_request_cost


def main(names: list[str]) -> int:
    """Run the named parts, or all."""
    parts: dict[str, Callable[[dict[str, Any]], Any]] = {
        "cluster": lambda _: cluster.measure(),
        "units": lambda _: units.measure(),
        "predict": lambda known: predict.predict(known["cluster"], _costs(known)),
        "days": lambda known: days.run(_costs(known)),
        "grid": lambda known: [grid.run(_costs(known), *point) for point in grid.POINTS],
    }
    if unknown := set(names) - set(parts):
        print(f"No part {', '.join(sorted(unknown))}. There are: {', '.join(parts)}.")
        return 2
    for name in names or parts:
        part = parts[name](_read())
        _write({**_read(), "machine": machine(), name: part})
        print(f"{name}: done", flush=True)
    return 0


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf8")) if RESULTS.exists() else {}
    return found


def _write(found: dict[str, Any]) -> None:
    """A line for each part."""
    lines = (f" {json.dumps(name)}: {json.dumps(part)}" for name, part in found.items())
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf8")


def _costs(known: dict[str, Any]) -> Costs:
    return read_costs(known["units"], read_request_cost())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
