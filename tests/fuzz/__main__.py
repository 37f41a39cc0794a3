"""`python -m tests.fuzz [SECONDS] [NAME …]`: fuzzes each decoder for a while; what breaks one is kept in `found/`.

Hypothesis edits the seeds: it cuts, repeats, overwrites and inserts, and shrinks what it finds. `--out FILE` adds one
JSON line a harness: inputs, seconds, finds, and how much the process grew.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Harness
from tests.fuzz.harnesses import HARNESSES

FOUND = Path(__file__).parent / "found"

WARM_SHARE = 0.2
"""Of the time: what the process grows by later is no cache that fills once."""


@dataclass
class Report:
    """What a harness did: inputs, seconds on the clock and of the processor, what broke it, and megabytes grown."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    found: str | None = None
    megabytes: float = 0.0
    grown: float = 0.0


@st.composite
def edited(draw: st.DrawFn, harness: Harness) -> bytes:
    """A seed after a few edits."""
    data = draw(st.sampled_from(harness.seeds))
    words = st.sampled_from(harness.words or (b"\0",))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 16)))
        fixed = st.sampled_from([b"", data[start:end] * 3, b"\xff" * 4, b"\0" * 8])
        data = data[:start] + draw(st.one_of(st.binary(max_size=8), fixed, words)) + data[end:]
    return harness.repair(data) if draw(st.booleans()) else data


def fuzz(name: str, harness: Harness, seconds: float) -> Report:
    """Run a harness for a while, or until an input breaks it."""
    report, last, warm = Report(name), b"", 0.0
    begun, worked = time.monotonic(), time.process_time()

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(edited(harness))
    def batch(data: bytes) -> None:
        nonlocal last
        report.inputs, last = report.inputs + 1, data
        harness.check(data)

    while report.found is None and (report.seconds < seconds):
        try:
            batch()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
            report.found = f"{name}-{hashlib.sha256(last).hexdigest()[:12]}"
            FOUND.mkdir(exist_ok=True)
            (FOUND / report.found).write_bytes(last)
        report.seconds, report.cpu_seconds = time.monotonic() - begun, time.process_time() - worked
        report.megabytes = _resident_megabytes()
        if not warm and report.seconds > WARM_SHARE * seconds:
            warm = report.megabytes
    report.grown = report.megabytes - (warm or report.megabytes)
    return report


def _resident_megabytes() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def main() -> int:
    """Fuzz; the exit status says whether anything broke."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="of each harness; default 60")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(HARNESSES)}; default all")
    parser.add_argument("--out", type=Path, help="file that gets a JSON line of each harness")
    asked = parser.parse_args()
    if unknown := set(asked.names) - HARNESSES.keys():
        parser.error(f"there is no harness {min(unknown)}; known are {', '.join(HARNESSES)}")
    broken = 0
    for name in asked.names or HARNESSES:
        report = fuzz(name, HARNESSES[name], asked.seconds)
        broken += report.found is not None
        spent = f"{report.seconds:>6.0f} s ({report.cpu_seconds:.0f} of the processor)"
        line = f"{name:14} {report.inputs:>9,} inputs {spent} {report.grown:>+6.0f} MB"
        sys.stdout.write(f"{line}  {report.found or 'fine'}\n")
        sys.stdout.flush()
        if asked.out is not None:
            with asked.out.open("a", encoding="utf8") as lines:
                lines.write(json.dumps(asdict(report)) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
