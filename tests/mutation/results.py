"""The results of `make mutants`: `results.json`, and the page `docs/mutation.md` that is generated from it."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutation.mutants import SEED, Mutant
from tests.mutation.workspace import ROOT, load_modules

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs/mutation.md"
TARGET = 0.85
KILLED = ("killed", "timeout", "segfault")
"""Outcomes that a run of the suite would show: a failed test, a test that never ends, a process that dies."""


@dataclass
class Measurement:
    """One module at one commit."""

    commit: str
    date: str
    seconds: float
    mutants: int
    sampled: int
    killed: int
    survivors: list[dict[str, str]]


def summarize(mutants: list[Mutant], outcomes: dict[str, str]) -> tuple[int, list[dict[str, str]]]:
    """Return how many mutants were killed, and the others with what became of them."""
    alive = [mutant for mutant in mutants if outcomes.get(mutant.name) not in KILLED]
    rows = [asdict(mutant) | {"outcome": outcomes.get(mutant.name, "not run")} for mutant in alive]
    return len(mutants) - len(alive), rows


def explain(survivor: dict[str, str]) -> str:
    """Return why no test can find a mutant; empty where one is missing."""
    found = (row["why"] for row in load_equivalents() if row.items() - {("why", row["why"])} <= survivor.items())
    return next(found, "")


@cache
def load_equivalents() -> list[dict[str, str]]:
    return tomllib.loads((HERE / "equivalent.toml").read_text("utf8")).get("equivalent", [])


def read_results() -> dict[str, dict[str, Any]]:
    """Module → its last measurement (`now`) and the one that it is compared with (`before`)."""
    return json.loads(RESULTS.read_text("utf8")) if RESULTS.exists() else {}


def save(module: str, measurement: Measurement, *, as_baseline: bool) -> None:
    results = read_results()
    row = results.setdefault(module, {})
    row["now"] = asdict(measurement)
    if as_baseline:
        row["before"] = {key: value for key, value in row["now"].items() if key != "survivors"}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf8")
    for path, text in mutation_page():
        path.write_text(text, "utf8")


def mutation_page() -> Iterator[tuple[Path, str]]:
    results = {name: row for name, row in read_results().items() if name in load_modules()}
    lines = [_INTRODUCTION.format(target=TARGET, seed=SEED), "", *_table(results), ""]
    for name, row in sorted(results.items()):
        lines += [f"## Survivors: {name}", "", *_survivors(row["now"]["survivors"]), ""]
    yield PAGE, "\n".join(lines).rstrip() + "\n"


def _table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "| module | mutants | run | killed | equivalent | score | before | commit | date | minutes |"
    yield "|---|--:|--:|--:|--:|--:|--:|---|---|--:|"
    for name, row in sorted(results.items()):
        now, before = row["now"], row.get("before")
        equivalent = sum(bool(explain(each)) for each in now["survivors"])
        cells = (
            name, now["mutants"], now["sampled"], now["killed"], equivalent, f"{score(now):.2f}",
            f"{score(before):.2f}" if before else "", f"`{now['commit']}`", now["date"],
            f"{now['seconds'] / 60:.0f}",
        )  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"


def score(row: dict[str, Any]) -> float:
    return row["killed"] / max(row["sampled"], 1)


def _survivors(rows: list[dict[str, str]]) -> Iterator[str]:
    if not rows:
        yield "None."
        return
    yield "| file | line | in the mutant | why no test finds it |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| `{Path(row['file']).name}` | {_code(row['was'])} | {_code(row['now'])} | {explain(row)} |"


def _code(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return f"`` {flat} ``" if flat else "(removed)"


_INTRODUCTION = """# Mutation testing

A mutant is the code with one small fault: a changed operator, constant, argument or condition. The suite kills a mutant
if a test fails. The share of killed mutants shows how many faults of this kind the tests would find. The target is
{target:.2f} for each of ten core modules.

`make mutants` runs [mutmut](https://github.com/boxed/mutmut) over all modules, `make mutants ARGS=scheduler` over one.
`tests/mutation/modules.toml` lists the files of each module and the tests that exercise them; the same tests run in
`make test`. Each mutant runs in its own process against the tests that reach the changed function.

- Where a module has many mutants, a sample is run, drawn at seed {seed}.
- mutmut does not mutate decorated functions (properties, context managers), class bodies and module constants.
- Mutants that only change letters in a message of several words are left out.
- The score counts an equivalent mutant, which no test can find, as alive.
- "before" is the score of the same module before the suite was shortened."""
