"""RRFormer's demo network: ONNX Runtime against eager torch, and tiles of 2K, 4K and 8K with their peak memory.

Each large picture is restored in a process of its own. By default a run is cancelled after some tiles, and the row says
after how many of how many: tiles of one size cost the same, so the rate holds for the rest, but nothing is added up.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import milliseconds, threads
from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.tiled_inference import CONTEXT
from services.vision_restoration.weights_loading import build_artifacts, load_weights
from shared.engines import open_engine
from shared.registry import Engine, LoadContext

SIDE = 384
SIZES = {"2K": (2048, 1080), "4K": (3840, 2160), "8K": (7680, 4320)}
TILES = 3
ALLOWED_MIB = 2048


def measure(rounds: int = 3, count: int = 1) -> Table:
    """Engines take turns; then each size once, cut short after a few tiles."""
    with threads(1), tempfile.TemporaryDirectory() as folder:
        timed = milliseconds(_engines(Path(folder)), min(rounds, 3 * count), 1)
    rows = [
        row(
            f"{variant}, {engine}",
            f"ms for {SIDE}×{SIDE}",
            timed[f"{variant}, {engine}"],
            statistics.median(timed[f"{variant}, torch"]),
        )
        for variant in CONTEXT
        for engine in ("torch", "onnx")
    ]
    large, peak = _large()
    eager, graph = (statistics.median(timed[f"paper, {engine}"]) for engine in ("torch", "onnx"))
    return Table(
        suite="restoration",
        title="Restoration: RRFormer, slim",
        baseline="torch, or 1 tile/s and 2 GiB",
        how="One thread; weights of the package; large pictures from JPEG, each in its own process",
        rows=[*rows, *large],
        targets={
            "ONNX Runtime, times faster than torch": (eager / graph, 1.0),
            f"8K: peak MiB in the first {TILES} tiles, at most": (peak, ALLOWED_MIB),
        },
    )


def _engines(folder: Path) -> dict[str, Callable[[], object]]:
    weights, picture = load_weights(RRFormerRestorer.folder, folder), np.random.default_rng(1)
    feed = {"image": picture.random((1, 3, SIDE, SIDE), np.float32)}
    opened: dict[str, Engine] = {}
    for variant in CONTEXT:
        for engine in ("torch", "onnx"):
            place = LoadContext(engine=engine, cache=folder, weights=folder, threads=1)
            opened[f"{variant}, {engine}"] = open_engine(
                place, build_artifacts(weights, variant, folder).forms("rrformer")
            )
    return {name: partial(engine.run, feed) for name, engine in opened.items()}


def _large() -> tuple[list[Row], float]:
    """Rate and memory of each size, and the peak at 8K."""
    rows, peak = [], 0.0
    for name, (width, height) in SIZES.items():
        words = [sys.executable, "-m", "loadtests.bench.restoring", str(width), str(height), str(TILES)]
        found = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout.splitlines()[-1])
        note = f"first {found['done']} of {found['tiles']} tiles, then cancelled"
        peak = float(found["peak_mib"])
        rows += [
            row(f"{name}, {width}×{height}", "tiles/s", [found["done"] / found["seconds"]], 1.0, note),
            row(
                f"{name}, {width}×{height}",
                f"MiB, peak of {TILES} tiles",
                [peak],
                ALLOWED_MIB,
                f"estimated {found['estimated_mib']}",
            ),
        ]
    return rows, peak
