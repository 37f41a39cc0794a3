"""Attention methods at equal bytes on RULER-form tasks, with kvpress on the same prompts; writes docs/leaderboard.md.

vLLM's dense answers stand beside ours as a check.

SmolLM2 and Gemma 3 in bfloat16. `PARTS` says which lengths and protocols are measured, and on how many samples.
Predictions are kept beside the results, so that a run that was cut short goes on where it stopped, and a larger one
answers only what is new. One sample is always answered again by every method, and where an answer has changed all of
ours are. kvpress has an environment of its own, which is made once and kept, and is skipped loudly where that fails.
"""

import json
import lzma
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from fovea_lab.ruler import plots
from fovea_lab.ruler.answer_store import read_predictions
from fovea_lab.ruler.leaderboard import write_page
from fovea_lab.ruler.report import Prediction, RulerReport
from fovea_lab.ruler.run import EvaluatedModel, export_samples, measure_costs, run_ruler
from fovea_lab.ruler.spec import RulerSpec
from loadtests.bench.longctx import gguf
from loadtests.bench.peers.environment import PeerMissing, prepare_environment
from loadtests.bench.result import Row, Table, machine
from loadtests.bench.suites.longctx_gemma import gemma_file
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
SHOWN = {
    "method", "budget", "bytes", "mean", "low", "high", "difference", "worse", "better", "n", "informative", "tasks",
}  # fmt: skip
"""Fields of a row that the page reads."""
POOL_BYTES = 6 * 2**30
"""Of keys and values, so that contexts that were read once are there for every method."""

METHODS: tuple[dict[str, Any], ...] = (
    {"method": "expected_attention"}, {"method": "snapkv"}, {"method": "pyramidkv"}, {"method": "adakv"},
    {"method": "criticalkv"}, {"method": "kvzip"}, {"method": "keydiff"}, {"method": "knorm"}, {"method": "tova"},
    {"method": "lagkv"}, {"method": "streamingllm"}, {"method": "triattention", "plan": "centres", "recent": 32},
    {"method": "duo", "plan": "gates", "sink": 16, "recent": 47, "label": "duo, 16 + 47"},
    {"method": "duo", "plan": "gates", "sink": 16, "recent": 128, "label": "duo, 16 + 128"},
    {"method": "razor", "plan": "default"},
)  # fmt: skip
BUDGETS = (0.75, 0.5, 0.25, 0.125)
NEEDLES = ("niah_single_1", "niah_single_2", "niah_multivalue", "niah_multikey_1")
"""Tasks that small models can do at 1,024 tokens; at 4,096 they can do the first."""

MODEL = "SmolLM2-135M-Instruct"
GEMMA = "Gemma 3 270M"
"""Reads windows of 512 tokens in 15 of 18 layers: only at long prompts can half of its bytes be freed."""


@dataclass(frozen=True)
class Part:
    """One section of the page: one model at one length under one protocol, on `n` samples a task.

    `presses` says how many of them each press of kvpress answers.
    """

    length: int
    protocol: str
    tasks: tuple[str, ...]
    n: int
    presses: Mapping[str, int] = field(default_factory=dict)
    model: str = MODEL

    @property
    def spec(self) -> RulerSpec:
        """What is evaluated: of a model without head plans, the methods that need none."""
        methods = [one for one in METHODS if self.model == MODEL or "plan" not in one]
        budgets = BUDGETS if self.model == MODEL else BUDGETS[:2]
        facts = {"methods": methods, "budgets": budgets, "lengths": [self.length], "tasks": self.tasks}
        return RulerSpec.model_validate({**facts, "n": self.n, "protocol": self.protocol, "max_answer": 32})


PRESSES = {
    **dict.fromkeys(("expected_attention", "snapkv", "knorm", "streamingllm", "tova", "keydiff"), 10),
    "kvzip": 2,
}
PARTS = (
    Part(1024, "agnostic", NEEDLES, 50, presses=PRESSES),
    Part(1024, "aware", NEEDLES, 15),
    Part(4096, "agnostic", NEEDLES[:1], 24, presses=dict.fromkeys(("keydiff", "knorm"), 3)),
    Part(4096, "agnostic", NEEDLES[:1], 32, model=GEMMA),
)


def measure(rounds: int = 0, count: int = 0) -> Table:
    """Evaluate all parts and write page and picture; for a look, `rounds` samples of the first part, `count` tokens."""
    parts = [replace(PARTS[0], n=rounds, length=max(count, 256), presses={})] if rounds else PARTS
    reports, costs = list[RulerReport](), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder, _unpacked() as store:
        for name, mine in groupby(parts, lambda part: part.model):
            on, files, group = *_open_model(name, Path(folder)), list(mine)
            _forget_changed(on, group[0].spec, store)
            for part in group:
                run_ruler(on, part.spec, store=store, progress=_say)
            reports += [_report(part, on, files, store) for part in group]
            costs = costs or measure_costs(on, group[0].spec)
    if not rounds:
        _write_pages(reports, costs)
    return _table(reports[0])


def _open_model(name: str, folder: Path) -> tuple[EvaluatedModel, Path]:
    """A model in bfloat16, and the folder of its files."""
    files = unpack(gguf() if name == MODEL else gemma_file(folder), folder / name, torch.bfloat16)
    engine = Engine(load_decoder(files, torch.bfloat16, "cpu"), kv_bytes=POOL_BYTES)
    plans = {file.stem: HeadPlan.read(file) for file in PLANS.glob("*.json")} if name == MODEL else {}
    return EvaluatedModel(engine, Tokenizer.from_folder(files), plans, name), files


def _forget_changed(on: EvaluatedModel, spec: RulerSpec, store: Path) -> None:
    """Delete what was predicted earlier if methods answer one sample otherwise today, or hold other bytes."""
    one = spec.model_copy(update={"n": 1, "tasks": spec.tasks[:1]})
    then, now = (
        {(x.method, x.budget): (x.mean, x.tokens, x.kv_bytes, x.kv_bytes_end) for x in report.cells}
        for report in (run_ruler(on, one, store=store), run_ruler(on, one))
    )
    if then != now:
        changed = sorted({str(name) for name, budget in now if then.get((name, budget)) != now[name, budget]})
        print(f"Other answers than before: {', '.join(changed)}. All are answered again.", file=sys.stderr)
        store.unlink()


def _report(part: Part, on: EvaluatedModel, files: Path, store: Path) -> RulerReport:
    """What is known of a part, with what peers answer."""
    theirs = _ask_peers(part, on, files, store) if part.presses else []
    return run_ruler(on, part.spec, store=store, extra=theirs)


def _ask_peers(part: Part, on: EvaluatedModel, files: Path, store: Path) -> list[Prediction]:
    """Answers of kvpress, and of vLLM's dense attention, on the first samples of a part."""
    outs = {name: store.with_name(f"ruler_{name}.jsonl") for name in ("kvpress", "vllm")}
    for n in sorted(set(part.presses.values())):
        samples = files / "samples.jsonl"
        rows = export_samples(on, part.spec.model_copy(update={"n": n}))
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
        presses = [f"{name}:{budget}" for budget in BUDGETS for name, most in part.presses.items() if most == n]
        for name, more in (("kvpress", ["--press", *presses]), ("vllm", [])):
            _answer(name, [str(files), str(samples), "--out", str(outs[name]), *more])
    wanted = {row["digest"] for row in export_samples(on, part.spec)}
    decode = partial(on.tokenizer.decode, special=False)
    found = [one for out in outs.values() if out.is_file() for one in read_predictions(out, decode)]
    return [one for one in found if one.digest in wanted]


def _answer(name: str, asked: Sequence[str]) -> None:
    """Let a peer answer into a file what the file does not hold yet."""
    try:
        interpreter = prepare_environment(name, PEER / f"requirements/{name}.txt")
    except PeerMissing as reason:
        print(f"{name} is SKIPPED: {reason}.", file=sys.stderr)
        return
    if subprocess.run([str(interpreter), str(PEER / f"engines/answer_{name}.py"), *asked], check=False).returncode:
        print(f"{name} FAILED; what it answered counts.", file=sys.stderr)


@contextmanager
def _unpacked() -> Iterator[Path]:
    """The file of our predictions, with those of peers beside it, as long as they are appended to.

    A run that was cut short leaves them unpacked, and the next goes on with them.
    """
    stores = [RESULTS / f"ruler{peer}.jsonl" for peer in ("", "_kvpress", "_vllm")]
    for store in stores:
        if not store.is_file() and (packed := store.with_suffix(".jsonl.xz")).is_file():
            store.write_bytes(lzma.decompress(packed.read_bytes()))
    yield stores[0]
    for store in filter(Path.is_file, stores):
        store.with_suffix(".jsonl.xz").write_bytes(lzma.compress(store.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
        store.unlink()


def _say(share: float, note: str) -> None:
    print(f"{share:.0%} {note}", file=sys.stderr, flush=True)


def _write_pages(reports: Sequence[RulerReport], costs: Mapping[str, float]) -> None:
    (ROOT / "docs/images/ruler.png").write_bytes(plots.draw_means(reports[0]))
    (ROOT / "docs/leaderboard.md").write_text(
        write_page(reports, f"{machine()['cpu']}, {machine()['cores']} cores", costs), "utf8"
    )
    about = f"{MODEL}, {PARTS[0].length:,} tokens, question-agnostic"
    shown = [one for one in reports[0].leaderboards if one.informative]
    most = max(one.n for one in shown)  # rows of few answers would head the page by chance
    rows = ",\n".join(one.model_dump_json(include=SHOWN) for one in shown if 2 * one.n >= most)
    PAGE_RESULTS.write_text(f'{{"about": {json.dumps(about)}, "leaderboards": [\n{rows}\n]}}\n', "utf8")


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
        title=f"Attention methods at equal bytes, RULER form, {report.spec['lengths'][0]:,} tokens",
        how="SmolLM2-135M-Instruct in bfloat16, question-agnostic; mean over tasks that dense can do, 95 % bootstrap; "
        "never to be compared with published RULER tables; docs/leaderboard.md has the other lengths and protocols",
        baseline="dense",
        rows=rows,
    )
