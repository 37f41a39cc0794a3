"""`python -m tests.report PHASES [--fuzz FILE]`: writes `docs/test-report.md` from what a run of all tests recorded.

`make test-all` calls it. The page says when which commit was tested, how long it took, what was skipped and how to run
that, which tests are slowest, and which were run again.
"""

import argparse
import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.harness.skips import AllowedSkip, read_allowed_skips

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/test-report.md"
SLOWEST = 20
Row = Mapping[str, Any]


@dataclass
class Run:
    """Records of a run, by test."""

    began: int = 0
    seconds: float = 0.0
    collection: float = 0.0
    finished: bool = False
    outcomes: dict[str, str] = field(default_factory=dict)
    """`passed`, `failed`, `skipped` or `xfailed`."""
    skips: dict[str, str] = field(default_factory=dict)
    """The message of each test that was skipped."""
    reruns: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a test may be run again."""
    calls: Counter[str] = field(default_factory=Counter)
    fixtures: Counter[str] = field(default_factory=Counter)
    """Seconds of fixtures and of tidying up."""

    def add(self, row: Row) -> None:
        test, phase, outcome = row["test"], row["phase"], row["outcome"]
        if not test:
            self.began = row["began"]
            if phase == "run":
                self.seconds, self.finished = row["seconds"], True
            else:
                self.collection = row["seconds"]
            return
        (self.calls if phase == "call" else self.fixtures)[test] += row["seconds"]
        if "timed" in row:
            self.reasons[test] = row["timed"]
        if outcome == "rerun":
            self.reruns[test] += 1
        elif outcome == "failed" or self.outcomes.get(test) == "failed":
            self.outcomes[test] = "failed"
        elif outcome == "skipped":
            self.outcomes[test] = "skipped" if "message" in row else "xfailed"
            self.skips |= {test: row["message"]} if "message" in row else {}
        else:
            self.outcomes.setdefault(test, "passed")


def read_run(rows: Iterable[Row]) -> Run:
    run = Run()
    for row in rows:
        run.add(row)
    return run


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    if not (lines := [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]):
        yield "None."
        return
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {line} |" for line in lines)


def count_skips(run: Run, allowed: Sequence[AllowedSkip]) -> Iterator[tuple[int, str, str, str]]:
    """For each reason: how many tests, which, why, and how to run them."""
    groups = defaultdict[tuple[str, str], set[str]](set)
    for test, message in run.skips.items():
        entry = next((one for one in allowed if one.covers(test, message)), None)
        groups[message, entry.enable if entry else "Not in tests/skips.toml"].add(test)
    for (message, enable), tests in sorted(groups.items(), key=lambda one: min(one[1])):
        files = sorted({test.partition("::")[0] for test in tests})
        yield len(tests), ", ".join(f"`{file}`" for file in files), message, enable


def render(run: Run, commit: str, fuzzed: Sequence[Row], allowed: Sequence[AllowedSkip]) -> str:
    counts = Counter(run.outcomes.values())
    date = datetime.fromtimestamp(run.began, UTC).strftime("%Y-%m-%d %H:%M UTC")
    total = f"{run.seconds / 60:.1f} minutes" if run.finished else "cut off"
    facts = (
        ("date", date), ("commit", f"`{commit}`"), ("duration", total), ("collection", f"{run.collection:.0f} s"),
        ("passed", counts["passed"]), ("failed", counts["failed"]), ("skipped", counts["skipped"]),
        ("expected failures", counts["xfailed"]), ("reruns", run.reruns.total()),
    )  # fmt: skip
    failed = [test for test, outcome in run.outcomes.items() if outcome == "failed"]
    calls = run.calls.most_common(SLOWEST)
    slowest = [(f"`{test}`", f"{seconds:.1f}", f"{run.fixtures[test]:.1f}") for test, seconds in calls]
    timed = [(f"`{test}`", times, run.reasons.get(test, "not marked `timed`")) for test, times in run.reruns.items()]
    inputs = [(row["name"], f"{row['inputs']:,}", f"{row['seconds']:.0f}", row["found"] or "nothing") for row in fuzzed]
    lines = [
        "# Test report", "", "The last run of `make test-all`, written by it: do not edit.", "",
        *table(("what", "value"), facts), "",
        "## Failed", "", *table(("test",), ([f"`{test}`"] for test in sorted(failed))), "",
        "## Skipped", "", *table(("tests", "file", "reason", "how to run them"), count_skips(run, allowed)), "",
        "## Reruns", "", f"{len(run.reasons)} tests hold a clock and may be run again once.", "",
        *table(("test", "times", "why it holds a clock"), timed), "",
        f"## Slowest {SLOWEST} tests", "", *table(("test", "call, s", "fixtures, s"), slowest), "",
        "## Fuzzing", "", *table(("decoder", "inputs", "seconds", "broken by"), inputs),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def read_rows(path: Path | None) -> list[Row]:
    """Lines of JSON; none without a file."""
    return [json.loads(line) for line in path.read_text("utf8").splitlines()] if path else []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.report", description=__doc__)
    parser.add_argument("phases", type=Path, help="what pytest wrote with --phases")
    parser.add_argument("--fuzz", type=Path, help="what `python -m tests.fuzz` wrote with --out")
    asked = parser.parse_args()
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    run = read_run(read_rows(asked.phases))
    PAGE.write_text(render(run, commit, read_rows(asked.fuzz), read_allowed_skips()), "utf8")
    print(f"Wrote {PAGE.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
