"""The scheduler at work: the first token behind a cached prefix, and eight requests of mixed methods at once."""

import statistics
from collections import defaultdict

import torch

from loadtests.bench.longctx import ROLES, SHORT, Smol, cpu_seconds, smollm2
from loadtests.bench.result import Table, row
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.methods import method

LENGTHS = (64, 128, 192, 256, 320, 384, 448, 512)
NEW = 128
COLD, CACHED = "first token, cold", "first token, cached"
ALONE, TOGETHER = "8 requests one by one", "8 requests together"


def measure(rounds: int = 1, count: int = 4096) -> Table:
    """Alternate both of each pair; medians over rounds. The crowd comes once and in bfloat16, being long."""
    taken: dict[str, list[float]] = defaultdict(list)
    differing = 0
    with threads(1):
        for dtype, kind in SHORT.items():
            with smollm2(dtype) as smol:
                for at in range(rounds):
                    prefix(taken, smol, kind, at, count)
                if dtype == torch.bfloat16:
                    differing += crowd(taken, smol, kind)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    rows, targets = [], {}
    for name, values in taken.items():
        what, _, kind = name.rpartition(" ")
        base = middle[f"{COLD if what in {COLD, CACHED} else ALONE} {kind}"]
        rows.append(row(name, "s", values, base))
    for kind in SHORT.values():
        sooner = middle[f"{COLD} {kind}"] / middle[f"{CACHED} {kind}"]
        targets[f"first token after a cached prefix of {count:,}, times sooner, {kind}"] = (sooner, 20.0)
        if f"{ALONE} {kind}" not in middle:
            continue
        faster = middle[f"{ALONE} {kind}"] / middle[f"{TOGETHER} {kind}"]
        targets[f"8 requests together, times the throughput of one by one, {kind}"] = (faster, 2.0)
    targets["answers that differ from those given alone (at most)"] = (float(differing), 0.0)
    how = (
        "SmolLM2-135M-Instruct, CPU seconds on one thread; prompts of 64–512 tokens, "
        f"{NEW} new ones, greedy: dense, duo, recycled, power, twice each"
    )
    return Table("longctx_serving", "Prefix cache and continuous batching", how, "cold or one by one", rows, targets)


def prefix(taken: dict[str, list[float]], smol: Smol, kind: str, at: int, count: int) -> None:
    """The first token of a prompt that nobody has read, and of one that was read before."""
    engine = Engine(smol.net)
    for label in (COLD, CACHED):
        engine.add_request(Request(smol.ids[at : at + count], max_tokens=1))
        taken[f"{label} {kind}"].append(cpu_seconds(lambda: finish(engine)))
    engine.scheduler.close()


def finish(engine: Engine) -> None:
    """Step until nothing is in flight."""
    while engine.scheduler.in_flight:
        engine.scheduler.step()


def crowd(taken: dict[str, list[float]], smol: Smol, kind: str) -> int:
    """Eight requests one by one and together; how many answers differ."""
    kinds = ("dense", method("duo", roles=ROLES), method("recycled", budget=64, stride=16), "power")
    requests = [Request(smol.ids[100 * i : 100 * i + n], kinds[i % 4], max_tokens=NEW) for i, n in enumerate(LENGTHS)]
    alone: list[list[int]] = []
    taken[f"{ALONE} {kind}"].append(
        cpu_seconds(lambda: alone.extend(list(Engine(smol.net).generate([one])[0].tokens) for one in requests))
    )
    together: list[list[int]] = []
    taken[f"{TOGETHER} {kind}"].append(
        cpu_seconds(lambda: together.extend(list(one.tokens) for one in Engine(smol.net).generate(requests)))
    )
    return sum(a != b for a, b in zip(alone, together, strict=True))
