"""`python -m loadtests.bench [SUITE …] [--quick]`: run suites, write `results/*.json` and docs/benchmarks.md."""

import argparse
import importlib
import json
import pkgutil
from inspect import signature
from pathlib import Path
from typing import Any

from loadtests.bench import suites
from loadtests.bench.freshness import explain_staleness, identify

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs/benchmarks.md"

INTRO = """# Benchmarks

`make bench` measures every table here and rewrites this page; `make bench ARGS="serving"` measures one suite.
Contenders take turns in one run; a figure is the median over rounds, the spread its lowest and highest round. Ratios
are to be trusted across machines, milliseconds only on the machine that is named. A table is marked **stale** when the
code or the weights that it measures have changed since.
"""


def main() -> None:
    """Run the named suites, or all."""
    known = [info.name for info in pkgutil.iter_modules(suites.__path__)]
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("suite", nargs="*", choices=[[], *known], help=f"one of {', '.join(known)}; default all")
    parser.add_argument("--data", type=Path, help="folder of real data sets, for the suites that can use it")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a look; results are not written")
    asked = parser.parse_args()
    for name in asked.suite or known:
        suite = importlib.import_module(f"{suites.__name__}.{name}")
        more = {"data": asked.data} if asked.data and "data" in signature(suite.measure).parameters else {}
        table = (suite.measure(rounds=2, count=200, **more) if asked.quick else suite.measure(**more)).as_dict()
        table["measures"] = identify(name)
        print(rendered(table))
        if not asked.quick:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n", "utf8")
    if not asked.quick:
        write_page()


def write_page() -> None:
    """Write docs/benchmarks.md from all results."""
    PAGE.write_text(render_page(), "utf8")


def render_page() -> str:
    """The page of all results, stale ones marked."""
    tables = [json.loads(file.read_text("utf8")) for file in sorted(RESULTS.glob("*.json"))]
    return INTRO + "".join(rendered(table) for table in tables)


def rendered(table: dict[str, Any]) -> str:
    """One suite as Markdown."""
    on = table["machine"]
    lines = [
        f"\n## {table['title']}",
        "",
        f"{table['how']}. {on['cpu']}, {on['cores']} cores, Python {on['python']}, {table['measured']}.",
        "",
    ]
    if reason := explain_staleness(table):
        lines[2:2] = [f"**Stale**: {reason}. Run `make bench ARGS={table['suite']}` again before you rely on it.", ""]
    lines += [f"| | | median | low – high | × {table['baseline']} | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['name']} | {r['unit']} | {r['median']:.3g} | {r['low']:.3g} – {r['high']:.3g} | {r['ratio']:.2f} "
        f"| {r['note']} |"
        for r in table["rows"]
    ]
    if table["targets"]:
        lines += ["", "| target | reached | wanted |", "|---|---|---|"]
        lines += [f"| {claim} | {got:.3g} | {want:.3g} |" for claim, (got, want) in table["targets"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
