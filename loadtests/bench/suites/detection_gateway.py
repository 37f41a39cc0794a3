"""Cost of the platform around a real model: YOLO9tr through gateway and service against ONNX Runtime in process.

Both have one thread for the model and take turns; requests are Open Inference v2 with binary tensors.
"""

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from loadtests.bench.client import drive, infer_request
from loadtests.bench.contender import Contender, make_quiet_environment, run_fleet
from loadtests.bench.result import Row, Table, row
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.detection.servables.box_detector import TENSOR_NAMES
from shared.registry import Engine, LoadContext

SIDE, SERVERS = 192, "loadtests.bench.servers"
BASELINE = "ONNX Runtime in process, batch 1"


def measure(rounds: int = 7, count: int = 40) -> Table:
    """Alternate both ways at batch 1 and 8; medians over rounds."""
    count = min(count, 40)
    folder = Path(tempfile.mkdtemp(prefix="fovea-bench-"))
    engine = Yolo9trBoxDetector.load(LoadContext(engine="onnx", cache=folder / "cache", threads=1)).engine
    fleet = {size: _gateway(folder, size) for size in (1, 8)}
    with run_fleet([*fleet.values()]):
        for contender in fleet.values():
            _warm(contender)
        speed = _rounds(engine, fleet, rounds, count)
    return _table(speed)


def _gateway(folder: Path, size: int) -> Contender:
    """A gateway with a service of its own behind it, asked with batches of `size`."""
    body, headers = infer_request(TENSOR_NAMES[0], _pictures(size))
    env = {**make_quiet_environment(str(folder / f"batch{size}")), "FOVEA_INTRA_OP_THREADS": "1"}
    ask = "/v2/models/yolo9tr/infer"
    served = {"words": ("detection", "yolo9tr"), "env": env}
    behind = Contender(f"detection service {size}", f"{SERVERS}.real_service", ask, body, headers, **served)
    upstream = {"FOVEA_STATIC_UPSTREAMS": f"detection=http://127.0.0.1:{behind.port}"}
    name, module = f"through the gateway, batch {size}", f"{SERVERS}.fovea_gateway"
    return Contender(name, module, ask, body, headers, env={**env, **upstream}, helpers=(behind,))


def _warm(contender: Contender, seconds: float = 120) -> None:
    """Ask until the gateway knows its replicas.

    Raises:
        RuntimeError: It did not in time.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            asyncio.run(drive(contender.port, contender.request, 2, concurrency=1))
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(1)
        else:
            return


def _pictures(size: int) -> np.ndarray:
    return np.random.default_rng(0).random((size, 3, SIDE, SIDE), np.float32)


def _rounds(engine: Engine, fleet: dict[int, Contender], rounds: int, count: int) -> dict[str, list[float]]:
    """Pictures per second of each way, one figure a round."""
    speed: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for size, contender in fleet.items():
            feeds, calls = {TENSOR_NAMES[0]: _pictures(size)}, max(count // size, 5)
            begun = time.perf_counter()
            for _ in range(calls):
                engine.run(feeds)
            speed[f"ONNX Runtime in process, batch {size}"].append(calls * size / (time.perf_counter() - begun))
            seconds = asyncio.run(drive(contender.port, contender.request, calls, concurrency=2))
            speed[contender.name].append(calls * size / seconds)
    return speed


def _table(speed: dict[str, list[float]]) -> Table:
    middle = {name: statistics.median(values) for name, values in speed.items()}
    rows: list[Row] = [row(name, "pictures / s", values, middle[BASELINE]) for name, values in speed.items()]
    return Table(
        suite="detection_gateway",
        title="YOLO9tr through the gateway",
        how=f"weights of the package, {SIDE}×{SIDE}, one thread for the model, 2 connections; client on the same cores",
        baseline=BASELINE,
        rows=rows,
        targets={
            f"through the gateway, share of ONNX Runtime's throughput at batch {size} (at least)": (
                middle[f"through the gateway, batch {size}"] / middle[f"ONNX Runtime in process, batch {size}"],
                0.9,
            )
            for size in (1, 8)
        },
    )
