"""`make mutants`: run mutants of the core modules, and write what the tests found."""

import argparse
import datetime as dt
import subprocess
import sys
import time

from tests.mutation.mutants import sample_mutants
from tests.mutation.results import TARGET, Measurement, save, summarize
from tests.mutation.workspace import ROOT, Module, Workspace, load_modules


def measure(module: Module, count: int, *, as_baseline: bool) -> float:
    """Run a sample of one module's mutants; return its score."""
    begun = time.monotonic()
    workspace = Workspace(module)
    with workspace.configured():
        mutants, total = sample_mutants(module.files, count)
    workspace.run([mutant.name for mutant in mutants])
    killed, survivors = summarize(mutants, workspace.outcomes(module.files))
    measurement = Measurement(
        **_stamp(), seconds=round(time.monotonic() - begun, 1), mutants=total, sampled=len(mutants), killed=killed,
        survivors=survivors,
    )  # fmt: skip
    save(module.name, measurement, as_baseline=as_baseline)
    print(f"{module.name}: {killed} of {len(mutants)} mutants killed; {total} in all; {measurement.seconds:.0f} s")
    return killed / len(mutants)


def _stamp() -> dict[str, str]:
    command = ("git", "rev-parse", "--short=8", "HEAD")
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return {"commit": commit, "date": dt.datetime.now(dt.UTC).date().isoformat()}


def main() -> int:
    modules = load_modules()
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("module", nargs="*", help=f"default: all of {', '.join(modules)}")
    parser.add_argument("--sample", type=int, default=120, help="mutants to run of each module (default: 120)")
    parser.add_argument("--baseline", action="store_true", help="later runs are compared with this one")
    options = parser.parse_args()
    if unknown := set(options.module) - set(modules):
        parser.error(f"Unknown module {', '.join(sorted(unknown))}. Available: {', '.join(modules)}.")
    chosen = [modules[name] for name in options.module or modules]
    scores = [measure(module, options.sample, as_baseline=options.baseline) for module in chosen]
    return int(min(scores) < TARGET)


if __name__ == "__main__":
    sys.exit(main())
