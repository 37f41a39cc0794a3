"""The engine beside llama.cpp built for this processor, OpenVINO GenAI, vLLM and transformers, all on SmolLM2.

Each in a process and an environment of its own, stopped while it is not asked; they take turns at every quantity. A
peer runs in its best setting, found by trying all of them on a prompt, and its build names it. One that can't be had
is skipped loudly. The wall clock on two threads is for a quiet machine; on a busy one
`python -m loadtests.bench.suites.longctx_peers --clock cpu` counts processor seconds of one thread.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from loadtests.bench.longctx import ROLES, gguf
from loadtests.bench.peers.environment import ENVIRONMENTS, PeerMissing, prepare_environment
from loadtests.bench.peers.peer import OURS, PEERS, PROBE, STEPS, Clock, Peer, choose_setting
from loadtests.bench.peers.process import EngineProcess, Generation
from loadtests.bench.result import Row, Table, row
from shared.lm.gguf_file import unpack
from shared.lm.niah_prompts import build_haystack
from shared.lm.tokenizer import Tokenizer

LENGTHS, LONGEST = (128, 1024, 4096), 7500
SHORT, SHORT_ROUNDS = 1024, 5
"""Prompts shorter than this are read in a twentieth of a second, whose spread is wide: they come more often."""

BATCHES, BATCH_PROMPT, BATCH_NEW = (8, 16), 512, 128
PEERS_ROOM = Path(__file__).parents[1] / "peers"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "duo": {"method": "duo", "roles": ROLES},
    "razor": {"method": "razor", "roles": ROLES, "window_min": 256, "window_div": 16},
    "recycled": {"method": "recycled", "budget": 1024, "stride": 50},
    "dhsa": {"method": "dhsa", "variant": "topk", "block": 128, "key_block": 64, "density": 0.22},
    "power": {"method": "power"},
}
"""The time that our engine saves at the longest prompt."""


@dataclass(frozen=True)
class Extent:
    """How much is measured: rounds per length of prompt, and of batches."""

    rounds: int = 3
    long_rounds: int = 2
    lengths: Sequence[int] = LENGTHS
    batches: Sequence[int] = BATCHES
    threads: int = 2
    clock: Clock = "wall"


def measure(rounds: int = 3, count: int = LONGEST) -> Table:
    """Alternate all; `count` is the longest prompt. With two rounds or fewer the longest and batches come once."""
    few = rounds < 3
    extent = Extent(rounds, 1 if few else 2, batches=BATCHES[:1] if few else BATCHES)
    return compare(extent, count if count >= 1024 else LONGEST, ENVIRONMENTS)


def compare(extent: Extent, longest: int, root: Path, only: Sequence[str] = (), kept: Path | None = None) -> Table:
    """Start the engines, let them take turns, and hand back the table; with `kept`, of earlier runs' figures, too."""
    taken: dict[str, list[float]] = defaultdict(list)
    earlier = json.loads(kept.read_text("utf8")) if kept and kept.is_file() else {"taken": {}, "builds": {}}
    with tempfile.TemporaryDirectory() as cache, ExitStack() as open_engines:
        folder = unpack(gguf(), Path(cache), torch.bfloat16)
        ids = Tokenizer.from_folder(folder).encode(build_haystack(60_000), special=False)
        engines = open_engines.enter_context(started(folder, Path(cache), extent, root, only, ids[-PROBE:]))
        for length in (*extent.lengths, *([longest] if longest else [])):
            short = SHORT_ROUNDS if length < SHORT else 1
            for at in range(extent.long_rounds if length == longest else short * extent.rounds):
                begin = 97 * at  # another text each time: nobody is helped by a cached prefix
                take_turns(taken, engines, extent.clock, [ids[begin : begin + length]], length)
        begins = itertools.count(0, 31)  # no prompt comes twice: nobody is helped by a cached prefix
        for size in extent.batches:
            for _ in range(extent.long_rounds):
                prompts = [ids[begin : begin + BATCH_PROMPT] for begin in itertools.islice(begins, size)]
                for engine in engines:
                    attempt(engine, taken, f"{size} at once", extent.clock, prompts)
        for engine in engines:
            if not engine.is_over:
                taken[f"{engine.name}, memory"].append(engine.memory())
        builds = earlier["builds"] | {engine.name: engine.build for engine in engines}
    for name, values in earlier["taken"].items():
        taken[name] = [*values, *taken[name]]
    if kept:
        kept.write_text(json.dumps({"taken": taken, "builds": builds}), "utf8")
    return table(taken, builds, extent, longest)


@contextmanager
def started(
    folder: Path, cache: Path, extent: Extent, root: Path, only: Sequence[str], probe: Sequence[int]
) -> Iterator[list[EngineProcess]]:
    """All engines that this machine can have, each in its best setting, loaded and stopped."""
    engines = list[EngineProcess]()
    try:
        for peer in PEERS:
            if only and not any(name in peer.name for name in only):
                continue
            try:
                engines.append(
                    choose_setting(peer, partial(start, peer, folder, cache, extent.threads, root), probe, extent.clock)
                )
            except PeerMissing as reason:
                print(f"{peer.name} is SKIPPED: {reason}.", file=sys.stderr)
            else:
                print(f"{peer.name}: {engines[-1].build}", file=sys.stderr)
        yield engines
    finally:
        for engine in engines:
            engine.close()


def start(peer: Peer, folder: Path, cache: Path, threads: int, root: Path, setting: Mapping[str, Any]) -> EngineProcess:
    """One engine in one setting, its environment made where it is missing; raises PeerMissing."""
    python, kept = Path(sys.executable), cache
    if peer.environment is not None:
        requirements = PEERS_ROOM / f"requirements/{peer.environment}.txt"
        python = prepare_environment(peer.environment, requirements, root, peer.build)
        kept = root / peer.environment / f"smollm2-{peer.options.get('weights', '')}"
    options = {"gguf": str(gguf()), "folder": str(folder), "kept": str(kept), **peer.options, **setting}
    return EngineProcess(peer.name, python, PEERS_ROOM / f"engines/{peer.script}.py", options, threads)


def take_turns(
    taken: dict[str, list[float]], engines: list[EngineProcess], clock: Clock, prompts: list[list[int]], length: int
) -> None:
    """Each engine reads and goes on once; ours under its methods, too, at the longest prompt."""
    for engine in list(engines):
        attempt(engine, taken, str(length), clock, prompts)
        if engine.name == OURS and length > max(LENGTHS):
            for name, knobs in METHODS.items():
                attempt(engine, taken, str(length), clock, prompts, f"{OURS}, {name}", knobs)


def attempt(
    engine: EngineProcess,
    taken: dict[str, list[float]],
    what: str,
    clock: Clock,
    prompts: list[list[int]],
    name: str = "",
    knobs: Mapping[str, Any] | None = None,
) -> None:
    """One generation of one engine; one that dies is told of, and asked no more."""
    if engine.is_over:
        return
    name, at = name or engine.name, ("wall", "cpu").index(clock)
    try:
        found: Generation = engine.generate(prompts, BATCH_NEW if len(prompts) > 1 else STEPS, knobs)
    except PeerMissing as reason:
        print(f"{name}, {what}: SKIPPED, {reason}.", file=sys.stderr)
        return
    if len(prompts) > 1:
        taken[f"{name}, {what}"].append(found.rate(at))
    else:
        taken[f"{name}, first token at {what}"].append(found.first(at))
        taken[f"{name}, decode at {what}"].append(1000 * found.per_token(at))
    print(f"{name}, {what}: {found.first(at):.2f} s, {found.rate(at):.1f} tokens/s", file=sys.stderr, flush=True)


UNITS = {"first": "s", "decode": "ms / token", "memory": "MiB"}


def table(taken: Mapping[str, Sequence[float]], builds: Mapping[str, str], extent: Extent, longest: int) -> Table:
    """Rows by quantity, each against ours in q4."""
    middle = {name: statistics.median(values) for name, values in taken.items()}
    order = list(dict.fromkeys(name.rpartition(", ")[2] for name in taken))
    order.sort(key=lambda what: (what.split()[0] not in UNITS, what.split()[0]))
    rows: list[Row] = []
    for what in order:
        for name, values in taken.items():
            who, _, mine = name.rpartition(", ")
            if mine == what:
                unit = UNITS.get(what.split()[0], "tokens/s")
                rows.append(row(name, unit, values, middle.get(f"{OURS}, {what}", middle[name]), builds.get(who, "")))
                builds = {one: build for one, build in builds.items() if one != who}  # said once, where it comes first
    clock = "wall clock" if extent.clock == "wall" else "processor seconds"
    how = (
        f"SmolLM2-135M-Instruct from one GGUF file (Q4_1), {extent.threads} thread(s), {clock}, engines in turn; "
        f"reading to the first token, median of {STEPS - 1} steps behind it; batches read {BATCH_PROMPT} and write "
        f"{BATCH_NEW} each; prompts under {SHORT:,} tokens come {SHORT_ROUNDS} times as often; memory is private "
        "at the end"
    )
    return Table("longctx_peers", "The engine beside its peers", how, OURS, rows, targets(middle, longest))


def targets(middle: Mapping[str, float], longest: int) -> dict[str, tuple[float, float]]:
    """How many times the best peer's, or llama.cpp's, of what is wanted."""
    peers, found = [peer.name for peer in PEERS if not peer.name.startswith("ours")], dict[str, tuple[float, float]]()

    def add(claim: str, ours: str, theirs: Sequence[str], want: float, *, more: bool = False) -> None:
        known = [middle[name] for name in theirs if name in middle]
        if known and ours in middle:
            best = max(known) if more else min(known)
            found[claim] = (middle[ours] / best if more else best / middle[ours], want)

    for length, want in ((128, 1.0), (1024, 1.0), (4096, 1.5), (longest, 2.0)):
        claim = f"decode at {length}, times llama.cpp"
        add(claim, f"{OURS}, decode at {length}", [f"llama.cpp, Q4_1, decode at {length}"], want)
    for length, want in ((128, 1.0), (1024, 1.0), (4096, 1.05), (longest, 1.2)):
        claim = f"first token at {length}, times the best peer"
        add(claim, f"{OURS}, first token at {length}", [f"{one}, first token at {length}" for one in peers], want)
    for size in BATCHES:
        claim = f"{size} at once, times the best peer"
        add(claim, f"{OURS}, {size} at once", [f"{one}, {size} at once" for one in peers], 1.2, more=True)
    for phase, peer_names, want in (("decode", ["llama.cpp, Q4_1"], 3.5), ("first token", peers, 1.8)):
        ours = {f"{OURS}, {name}, {phase} at {longest}" for name in METHODS} & middle.keys()
        if ours:
            best = min(ours, key=lambda name: middle[name])
            claim = f"best method's {phase} at {longest}, times {'llama.cpp' if phase == 'decode' else 'the best peer'}"
            add(claim, best, [f"{one}, {phase} at {longest}" for one in peer_names], want)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of all but the longest prompt and batches")
    parser.add_argument("--long-rounds", type=int, default=2)
    parser.add_argument("--longest", type=int, default=LONGEST, help="0 leaves it out")
    parser.add_argument("--batches", default="8,16")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--peers", type=Path, default=ENVIRONMENTS, help="folder of environments")
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--kept", type=Path, help="file of raw figures: earlier runs' count, too")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    sizes, short = ([int(x) for x in given.split(",") if x] for given in (asked.batches, asked.lengths))
    names = [name for name in asked.only.split(",") if name]
    wanted = Extent(asked.rounds, asked.long_rounds, short, sizes, 1 if asked.clock == "cpu" else 2, asked.clock)
    found = compare(wanted, asked.longest, asked.peers, names, asked.kept).as_dict()
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", "utf8")
