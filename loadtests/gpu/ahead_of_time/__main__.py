"""`python -m loadtests.gpu.ahead_of_time [--write] [operation/shape/card …]`, with wildcards.

Compiles the cells and compares them with `results.json`: exit status 1 where one is over budget or differs. Another
Triton than the recorded one may well compile otherwise: then budgets are only printed. `--write` records whole
operations, where all keep their budgets: `--write 'decode/*'`.
"""

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.gpu.ahead_of_time.grid import measure
from loadtests.gpu.ahead_of_time.results import Row, digest_sources, read_results, write_results


def main(arguments: Sequence[str]) -> int:
    """Compile, print, compare or record; return the number of faults."""
    patterns = [one for one in arguments if one != "--write"]
    rows, faults = [], 0
    for row in measure(patterns or ["*"]):
        rows.append(row)
        for fault in row.over_budget:
            sys.stdout.write(f"{row.name}: {fault}\n")
            faults += 1
    if not rows:
        sys.stdout.write("No cell matches. Names are like `decode/Llama-3-8B, bf16, runs/H100`; try `decode/*`.\n")
        return 1
    if "--write" in arguments:
        if not faults:  # what is over budget is not a record
            write_results(rows)
        return faults
    sys.stdout.write(f"{len(rows)} kernels compiled, {faults} over budget\n")
    recorded, version = read_results(), importlib.metadata.version("triton")
    if recorded["triton"] != version:
        sys.stdout.write(f"This is Triton {version}; budgets and results.json are of {recorded['triton']}.\n")
        return 0
    drifted = [line for row in rows for line in _compare(row, recorded)]
    sys.stdout.writelines(f"{line}\n" for line in [*drifted, f"{len(drifted)} differ from results.json"])
    return faults + len(drifted)


def _compare(row: Row, recorded: Mapping[str, Any]) -> list[str]:
    """Differences from the record."""
    operation = row.name.split("/")[0]
    if recorded["sources"].get(operation) != digest_sources(operation):
        return [f"{row.name}: the sources changed since results.json was written; run with --write"]
    found = recorded["rows"].get(row.name)
    return [] if found == row.used else [f"{row.name}: {found} is recorded, {dict(row.used)} found"]


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
