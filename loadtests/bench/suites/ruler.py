"""Attention methods at equal bytes on RULER-form tasks, with kvpress on the same prompts; writes docs/leaderboard.md.

vLLM's dense answers stand beside ours as a check.

SmolLM2 in bfloat16. Predictions are kept beside the results, so that a run that was cut short goes on where it
stopped, and a larger one answers only what is new. kvpress runs in an environment of its own, which is made once and
kept (`--peers` of `python -m loadtests.bench.suites.ruler` says where), and is skipped loudly where that fails.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fovea_lab.ruler import peers, plots
from fovea_lab.ruler.leaderboard import write_page
from fovea_lab.ruler.report import RulerReport
from fovea_lab.ruler.run import EvaluatedModel, export_samples, measure_costs, run_ruler
from fovea_lab.ruler.spec import RulerSpec
from loadtests.bench.longctx import gguf
from loadtests.bench.peers.environment import ENVIRONMENTS, PeerMissing, prepare_environment
from loadtests.bench.result import Row, Table, machine
from services.llm_longctx.engine import Engine
from shared.lm.gguf_file import unpack
from shared.lm.head_plan import HeadPlan
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "loadtests/bench/results"
PEER = ROOT / "loadtests/bench/peers"
PLANS = ROOT / "services/llm_longctx/weights/heads/smollm2-135m-instruct"
PAGE_RESULTS = ROOT / "plugins/lab/fovea_lab/leaderboard/static/results.json"
"""Results that the console's page Leaderboard opens with."""
POOL_BYTES = 6 * 2**30
"""Of keys and values, so that contexts that were read once are there for every method."""

METHODS: tuple[dict[str, Any], ...] = (
    {"method": "expected_attention"},
    {"method": "snapkv"},
    {"method": "pyramidkv"},
    {"method": "adakv"},
    {"method": "criticalkv"},
    {"method": "kvzip"},
    {"method": "keydiff"},
    {"method": "knorm"},
    {"method": "tova"},
    {"method": "lagkv"},
    {"method": "streamingllm"},
    {"method": "duo", "plan": "gates", "sink": 16, "recent": 47, "label": "duo, 16 + 47"},
    {"method": "duo", "plan": "gates", "sink": 16, "recent": 128, "label": "duo, 16 + 128"},
    {"method": "razor", "plan": "default"},
)
PRESSES = ("expected_attention", "snapkv", "knorm", "streamingllm", "tova", "keydiff")


def measure(rounds: int = 10, count: int = 1024) -> Table:
    """`rounds` samples a task at `count` tokens, all budgets."""
    spec = RulerSpec.model_validate(
        {
            "methods": METHODS,
            "budgets": [0.75, 0.5, 0.25, 0.125],
            "lengths": [count],
            "tasks": ["all"],
            "n": rounds,
        }
    )
    return evaluate(spec, list_presses(PRESSES, spec.budgets))


def list_presses(names: Sequence[str], budgets: Sequence[float]) -> list[str]:
    """Presses in the form that kvpress's process reads."""
    return [f"{name}:{budget}" for budget in budgets for name in names]


def evaluate(
    spec: RulerSpec,
    presses: Sequence[str],
    environments: Path = ENVIRONMENTS,
    *,
    threads: int = 0,
    page: int = 16,
    suffix: str = "",
) -> Table:
    """Run ours and kvpress, write page and picture (their names end in `suffix`), and hand back the table."""
    with tempfile.TemporaryDirectory() as folder:
        files = unpack(gguf(), Path(folder), torch.bfloat16)
        engine = Engine(load_decoder(files, torch.bfloat16, "cpu"), page=page, threads=threads, kv_bytes=POOL_BYTES)
        store = RESULTS / f"ruler{suffix}.jsonl"
        tokenizer = Tokenizer.from_folder(files)
        plans = {file.stem: HeadPlan.read(file) for file in PLANS.glob("*.json")}
        on = EvaluatedModel(engine, tokenizer, plans, "SmolLM2-135M-Instruct")
        report = _ours_and_theirs(on, files, spec, store, presses, environments, threads)
        costs = measure_costs(on, spec)
    picture = f"images/ruler{suffix}.png"
    (ROOT / "docs" / picture).write_bytes(plots.draw_means(report))
    text = write_page(report, f"{machine()['cpu']}, {machine()['cores']} cores", picture, costs)
    (ROOT / f"docs/leaderboard{suffix}.md").write_text(text, "utf8")
    if not suffix:
        PAGE_RESULTS.write_text(_dump_results(report), "utf8")
    return _table(report)


def _ours_and_theirs(
    on: EvaluatedModel,
    files: Path,
    spec: RulerSpec,
    store: Path,
    presses: Sequence[str],
    environments: Path,
    threads: int,
) -> RulerReport:
    samples = files / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in export_samples(on, spec)), "utf8")
    theirs = {name: store.with_name(f"{store.stem}_{name}.jsonl") for name in ("kvpress", "vllm")}
    asked = [str(files), str(samples), "--threads", str(threads or 1)]
    stores = (store, *theirs.values())
    _unpack(stores)
    with _answering("kvpress", environments, theirs["kvpress"], [*asked, "--press", *presses]):
        run_ruler(on, spec, store=store, progress=_say)
    with _answering("vllm", environments, theirs["vllm"], asked):
        pass
    wanted = {row["digest"] for row in map(json.loads, samples.read_text("utf8").splitlines())}
    found = [
        one
        for file in theirs.values()
        if file.is_file()
        for one in peers.read_predictions(file, decode=lambda ids: on.tokenizer.decode(ids, special=False))
        if one.digest in wanted
    ]
    report = run_ruler(on, spec, store=store, extra=found)
    _pack(stores)
    return report


def _unpack(stores: Sequence[Path]) -> None:
    """Predictions as they are kept in the repository, unless a run that was cut short has left its own."""
    for store in stores:
        if not store.is_file() and (packed := store.with_suffix(".jsonl.xz")).is_file():
            store.write_bytes(lzma.decompress(packed.read_bytes()))


def _pack(stores: Sequence[Path]) -> None:
    """Keep them for the next run."""
    for store in filter(Path.is_file, stores):
        store.with_suffix(".jsonl.xz").write_bytes(lzma.compress(store.read_bytes(), preset=9))
        store.unlink()


@contextmanager
def _answering(name: str, environments: Path, out: Path, asked: Sequence[str]) -> Iterator[None]:
    """A peer that answers into a file meanwhile, in a process that is waited for."""
    try:
        interpreter = prepare_environment(name, PEER / f"requirements/{name}.txt", environments)
    except PeerMissing as reason:
        print(f"{name} is SKIPPED: {reason}.", file=sys.stderr)
        yield
        return
    process = subprocess.Popen([str(interpreter), str(PEER / f"engines/answer_{name}.py"), *asked, "--out", str(out)])
    try:
        yield
        if process.wait():
            print(f"{name} FAILED; what it answered counts.", file=sys.stderr)
    finally:
        process.terminate()
        process.wait()


def _say(share: float, note: str) -> None:
    print(f"{share:.0%} {note}", file=sys.stderr, flush=True)


def _dump_results(report: RulerReport) -> str:
    """The rankings of a report as the console's page reads them, a line each."""
    about = f"SmolLM2-135M-Instruct, {_describe(report.spec)}, question-agnostic"
    rows = ",\n".join(one.model_dump_json() for one in report.leaderboards)
    return f'{{"about": {json.dumps(about)}, "leaderboards": [\n{rows}\n]}}\n'


def _table(report: RulerReport) -> Table:
    shown = [one for one in report.leaderboards if one.informative] or report.leaderboards
    dense = next((one.mean for one in shown if one.method == "dense"), 1.0) or 1.0
    rows = [
        Row(
            one.method if one.budget is None else f"{one.method} at {one.budget:g}",
            "score",
            one.mean,
            one.low,
            one.high,
            one.mean / dense,
            f"{one.bytes:.3f} of dense's bytes, n {one.n}, worse/better {one.worse}/{one.better}",
        )
        for one in shown
    ]
    return Table(
        suite="ruler",
        title=f"Attention methods at equal bytes, RULER form: {_describe(report.spec)}",
        how="SmolLM2-135M-Instruct in bfloat16, question-agnostic; mean over tasks that dense can do, 95 % bootstrap; "
        "never to be compared with published RULER tables",
        baseline="dense",
        rows=rows,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--budgets", default="0.75,0.5,0.25,0.125")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--max-answer", type=int)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--page", type=int, default=16, help="Entries per page.")
    parser.add_argument("--peers", type=Path, default=ENVIRONMENTS, help="Folder of environments.")
    parser.add_argument("--press", nargs="*", help="NAME:KEPT of kvpress; left out, six at each budget.")
    parser.add_argument("--methods", nargs="*", help="Names or labels of ours; left out, all.")
    parser.add_argument("--suffix", default="", help="Ends the names of page, picture and table: one more page.")
    asked = parser.parse_args()
    ours = [one for one in METHODS if not asked.methods or one.get("label", one["method"]) in asked.methods]
    wanted = RulerSpec.model_validate(
        {
            "methods": ours,
            "budgets": [float(x) for x in asked.budgets.split(",")],
            "lengths": [asked.length],
            "tasks": asked.tasks.split(","),
            "n": asked.n,
            "max_answer": asked.max_answer,
        }
    )
    theirs = asked.press if asked.press is not None else list_presses(PRESSES, wanted.budgets)
    table = evaluate(wanted, theirs, asked.peers, threads=asked.threads, page=asked.page, suffix=asked.suffix)
    (RESULTS / f"ruler{asked.suffix}.json").write_text(json.dumps(table.as_dict(), indent=1) + "\n", "utf8")


def _describe(spec: Mapping[str, Any]) -> str:
    """Lengths and budgets, which tell the tables of several runs apart."""
    return ", ".join((*(f"{n:,} tokens" for n in spec["lengths"]), *(f"budget {one:g}" for one in spec["budgets"])))
