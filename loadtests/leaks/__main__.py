"""`python -m loadtests.leaks [--minutes 10] [--services …]`: does any process grow while it is used and abused?

Starts the product in a folder of its own, or watches one that runs (`--watch`), sends mixed traffic, and notes each
process's own memory every few seconds. A first part warms up: models, arenas and caches fill. What counts is the slope
of the rest, by Theil and Sen, which single peaks do not bend. The exit status is 1 where a process grows faster than
allowed.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import psutil

from loadtests.bench.result import machine
from loadtests.leaks.bare import bare_product
from loadtests.leaks.traffic import Traffic
from tests.e2e.conftest import start, stop

START_S = 1200.0
SAMPLE_S = 5.0
WARM_SHARE = 0.3
MAX_MB_PER_MINUTE = 5.0
"""Above it a process is called growing; the noise of allocators is about one."""

Samples = dict[str, list[tuple[float, float]]]


def main() -> int:
    """Measure, print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(prog="make leaks", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--services", default="", help="comma-separated; default all")
    parser.add_argument("--bare", action="store_true", help="a gateway and one replica a service, without Ray and jobs")
    parser.add_argument("--watch", type=int, metavar="PID", help="of a `fovea up` that runs, instead of starting one")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the gateway that is watched")
    parser.add_argument("--out", type=Path, help="file for the samples, as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fovea-leaks-") as folder, _running(Path(folder), asked) as (url, root):
        traffic = Traffic(url, frozenset(filter(None, asked.services.split(","))))
        samples = asyncio.run(_measure(traffic, root, asked.minutes * 60))
    return _report(samples, asked.minutes, asked.out)


@contextmanager
def _running(folder: Path, asked: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """The product's URL, and the process whose descendants are watched."""
    if asked.watch is not None:
        yield asked.url, psutil.Process(asked.watch)
        return
    if asked.bare:
        with bare_product(folder, asked.services.split(",")) as url:
            yield url, psutil.Process()
        return
    product = start(folder, **({"FOVEA_ENABLED_SERVICES": asked.services} if asked.services else {}))
    try:
        product.wait_for(product.is_ready, START_S)
        yield product.url, psutil.Process(product.process.pid)
    finally:
        if product.process.poll() is None:
            stop(product)


async def _measure(traffic: Traffic, root: psutil.Process, seconds: float) -> Samples:
    samples: Samples = defaultdict(list)
    begun, sending = time.monotonic(), asyncio.create_task(traffic.run(seconds))
    while not sending.done():
        for name, megabytes in _memory(root).items():
            samples[name].append((time.monotonic() - begun, megabytes))
        await asyncio.wait([sending], timeout=SAMPLE_S)
    await sending
    print("answers by status:", dict(sorted(traffic.statuses.items())))
    return samples


def _memory(root: psutil.Process) -> dict[str, float]:
    """Megabytes that each process has for itself (USS), by what it is called and its id."""
    found = {}
    for process in root.children(recursive=True):
        try:
            found[f"{_name(process.cmdline())} {process.pid}"] = process.memory_full_info().uss / 2**20
        except (psutil.Error, IndexError):
            continue
    return found


def _name(words: list[str]) -> str:
    if "-m" in words:
        return " ".join(words[words.index("-m") + 1 :][:2])
    return Path(words[0]).name[:40]


def _report(samples: Samples, minutes: float, out: Path | None) -> int:
    rows, growing = [], 0
    for name, points in sorted(samples.items()):
        warm = [(at, megabytes) for at, megabytes in points if at > WARM_SHARE * minutes * 60]
        if len(warm) < 5:
            continue  # it came or went meanwhile
        slope = 60 * statistics.median((b - a) / (u - t) for (t, a), (u, b) in combinations(warm, 2))
        growing += slope > MAX_MB_PER_MINUTE
        rows.append((name, points[0][1], warm[0][1], warm[-1][1], slope))
    print(f"{'process':48} {'begin':>8} {'warm':>8} {'end':>8}  MB    MB a minute once warm")
    for name, begin, warm_mb, end, slope in rows:
        print(f"{name:48} {begin:8.0f} {warm_mb:8.0f} {end:8.0f}       {slope:+.2f}")
    if out is not None:
        out.write_text(json.dumps({"machine": machine(), "minutes": minutes, "samples": samples}, indent=1) + "\n")
    return 1 if growing else 0


if __name__ == "__main__":
    sys.exit(main())
