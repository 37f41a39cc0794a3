"""Eviction while decoding for long: KL to dense per position, bytes over time, and time per token.

Teacher-forced, every method is fed the same real prose; freely, each goes on greedily from the same prompt, and dense
reads the method's own text, too. kvpress's decoding presses do the same in an environment of their own, with a dense
model of their own. Clocks are CPU seconds of one thread. At 4,096 tokens: `python -m loadtests.bench
longctx_decoding`; a small size ends within minutes (`--quick`).
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fovea_lab.text_corpus import load_library_prose
from loadtests.bench.longctx import cpu_seconds, gguf, read
from loadtests.bench.peers.environment import ENVIRONMENTS, PeerMissing, prepare_environment
from loadtests.bench.result import Row, Table
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.methods import method
from services.llm_longctx.serving.weight_format import load_weights
from shared.lm.gguf_file import unpack
from shared.lm.tokenizer import Tokenizer

PROMPT = 256
BUDGET = 512
"""Entries per head that every method keeps of prompt and answer together."""

EVERY = 64
"""Steps from cut to cut."""

PARTS = 4
"""Stretches of the answer that rows report."""

POINT = 256
"""Tokens that make a point of the curves that are kept."""

PEERS = Path(__file__).parents[1] / "peers"
RESULT = Path(__file__).parents[1] / "results/longctx_decoding.json"
PRESSES = ("streamingllm", "tova", "keydiff", "knorm")
"""Presses of kvpress with the names of our methods."""

Forcing = Literal["teacher", "free"]


@dataclass(frozen=True)
class Curves:
    """Curves of one method, a value per token.

    Attributes:
        kl: KL(dense ‖ method) behind each token, nats.
        agreed: Whether both have the same first choice.
        kv_bytes, dense_bytes: Pages held after each token.
        ms: CPU milliseconds of each step.
    """

    kl: list[float] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    kv_bytes: list[int] = field(default_factory=list)
    dense_bytes: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Decoding(Table):
    """The table, and the curves by forcing and method."""

    curves: dict[str, Any] = field(default_factory=dict)


def list_methods(budget: int, every: int) -> Mapping[str, Mapping[str, Any]]:
    """Methods with their knobs, all at one budget."""
    cut = {"budget": budget, "every": every, "prefill": "none"}
    return {
        "triattention": {**cut, "protect_prompt": False, "recent": min(128, budget // 4)},
        "streamingllm": cut,
        "tova": cut,
        "keydiff": cut,
        "knorm": cut,
    }


def measure(rounds: int = 1, count: int = 4096) -> Decoding:
    """Decode `count` tokens behind 256, teacher-forced and freely; `rounds` is not used: nothing is drawn."""
    del rounds
    budget = min(BUDGET, (PROMPT + count) // 4)
    with tempfile.TemporaryDirectory() as cache, threads(1), torch.inference_mode():
        loaded = load_weights(gguf(), Path(cache), "q4")
        text = load_library_prose(8 * (PROMPT + count))
        ids = Tokenizer.from_folder(loaded.folder).encode(text, special=False)[: PROMPT + count]
        engine = Engine(loaded.model, packed=loaded.packed)
        curves = {
            f"{name}, {forcing}": follow(engine, {"method": name, **knobs}, ids, PROMPT, count, forcing)
            for forcing in ("teacher", "free")
            for name, knobs in list_methods(budget, EVERY).items()
        }
        del engine, loaded
        how = (
            f"SmolLM2-135M-Instruct, ours with its own 4-bit weights, kvpress's in bf16, one thread, CPU clock; "
            f"{count:,} tokens behind {PROMPT}, {budget} entries per head, cut every {EVERY} steps"
        )
        how, kept, shown = recall_kvpress(how)
        theirs = {} if kept else follow_kvpress(ids, count, budget, Path(cache))
    rows = [row for name, found in (curves | theirs).items() for row in summarize(name, found)]
    shown |= {name: thin(found) for name, found in (curves | theirs).items()}
    return Decoding("longctx_decoding", "Eviction while decoding", how, "dense", [*rows, *kept], curves=shown)


def recall_kvpress(how: str) -> tuple[str, list[Row], dict[str, Any]]:
    """Description, rows and curves of kvpress from the last run at the same sizes: it takes an hour, ours minutes.

    Delete the result after a change of kvpress's release.
    """
    if not RESULT.is_file() or not (last := json.loads(RESULT.read_text("utf8")))["how"].startswith(how):
        return how, [], {}
    rows = [Row(**row) for row in last["rows"] if "kvpress" in row["name"]]
    return last["how"], rows, {name: curve for name, curve in last["curves"].items() if name.startswith("kvpress")}


def follow_kvpress(ids: Sequence[int], count: int, budget: int, folder: Path) -> dict[str, Curves]:
    """As `follow`, for kvpress's presses on the same tokens; nothing where it can't be installed."""
    try:
        python = prepare_environment("kvpress", PEERS / "requirements/kvpress.txt", ENVIRONMENTS)
    except PeerMissing as reason:
        print(f"kvpress is SKIPPED: {reason}.", file=sys.stderr)
        return {}
    model, asked, out = unpack(gguf(), folder, torch.bfloat16), folder / "asked.json", folder / "kvpress.jsonl"
    wanted = {"ids": ids, "prompt": PROMPT, "count": count, "budget": budget, "every": EVERY, "presses": PRESSES}
    asked.write_text(json.dumps(wanted), "utf8")
    subprocess.run([python, PEERS / "engines/decode_kvpress.py", model, asked, "--out", out], check=True)
    return {
        f"{line['build']} {line['method']}, {line['forcing']}": Curves(**{key: line[key] for key in vars(Curves())})
        for line in map(json.loads, out.read_text("utf8").splitlines())
    }


def follow(
    engine: Engine, asked: Mapping[str, Any], ids: Sequence[int], prompt: int, count: int, forcing: Forcing
) -> Curves:
    """Decode under a method and densely, side by side over the same tokens.

    Args:
        engine: Runs both.
        asked: The method's name and knobs.
        ids: Prompt and, for `teacher`, what follows [prompt + count].
        prompt: Tokens that are read.
        count: Steps.
        forcing: Whose tokens are fed: the text's, or the method's own first choices.
    """
    how = method(str(asked["method"]), **{k: v for k, v in asked.items() if k != "method"})
    both = [OpenSequence(engine.runner, engine.runner.open(engine.policy_of(one))) for one in (how, method("dense"))]
    mine, dense = both
    found = Curves()
    token = int(read(mine, ids[:prompt])[-1].argmax())
    read(dense, ids[:prompt])
    for at in range(count):
        fed = ids[prompt + at] if forcing == "teacher" else token
        logits: list[torch.Tensor] = []
        found.ms.append(1000 * cpu_seconds(partial(lambda fed, to: to.append(mine.step(fed)), fed, logits)))
        p, q = dense.step(fed).float().log_softmax(-1), logits[0].float().log_softmax(-1)
        token = int(q.argmax())
        found.kl.append(float((p.exp() * (p - q)).sum()))
        found.agreed.append(int(p.argmax()) == token)
        found.kv_bytes.append(mine.kv_bytes())
        found.dense_bytes.append(dense.kv_bytes())
    for one in both:
        one.close()
    return found


def summarize(name: str, found: Curves) -> Iterator[Row]:
    """Rows of the KL, over all and by stretches of the answer, bytes, and time per token at the end."""
    size = -(-len(found.kl) // PARTS)
    means = [statistics.fmean(found.kl[at : at + size]) for at in range(0, len(found.kl), size)]
    note = f"ratio: same first choice; by quarters {', '.join(f'{mean:.3f}' for mean in means)}"
    mean, same = statistics.fmean(found.kl), statistics.fmean(found.agreed)
    yield Row(f"KL, {name}", "nats/token", mean, min(means), max(means), same, note)
    held = max(found.kv_bytes)
    share = found.kv_bytes[-1] / found.dense_bytes[-1]
    yield Row(f"bytes, {name}", "MiB at most", held / 2**20, min(found.kv_bytes) / 2**20, held / 2**20, share)
    tail = sorted(found.ms[-size:])
    yield Row(f"time, {name}", "CPU ms / token, last quarter", tail[len(tail) // 2], tail[0], tail[-1], 1.0)


def thin(found: Curves) -> dict[str, list[float]]:
    """Means of every `POINT` tokens, in four digits: what a figure needs."""
    return {
        key: [float(f"{statistics.fmean(curve[at : at + POINT]):.4g}") for at in range(0, len(curve), POINT)]
        for key, curve in vars(found).items()
    }
