"""`python -m loadtests.rehearsal`: rehearses production traffic; ends with 1 where an objective was missed."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from loadtests.rehearsal.report import check_slos, render_html, summarise
from loadtests.rehearsal.stage import Stage
from loadtests.rehearsal.traffic import run
from shared.registry.discovery import SERVICES


def main() -> int:
    """Rehearse, and write `rehearsal.json` and `rehearsal.html`."""
    parser = argparse.ArgumentParser(prog="make rehearse", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=2, help="of each service")
    parser.add_argument("--services", default=",".join(SERVICES), help="separated by commas")
    parser.add_argument("--out", type=Path, default=Path("out/rehearsal"), help="folder of the report")
    asked = parser.parse_args()
    seconds = 60 * asked.minutes
    with Stage(tuple(asked.services.split(",")), asked.replicas) as stage:
        record = asyncio.run(run(stage, seconds, asked.connections))
    figures = summarise(record, seconds, asked.connections)
    held = check_slos(figures)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "rehearsal.json").write_text(json.dumps({**figures, "objectives": held}, indent=1) + "\n", "utf-8")
    (asked.out / "rehearsal.html").write_text(render_html(figures, held), "utf-8")
    for each in held:
        kept = "kept  " if each["is_kept"] else "MISSED"
        print(f"{kept}  {each['objective']}: {each['reached']} (at most {each['most']})")
    print(f"{figures['requests']} requests, {figures['failed']} failed; report in {asked.out}")
    return int(not all(each["is_kept"] for each in held))


if __name__ == "__main__":
    sys.exit(main())
