"""Cost of serving: CPU milliseconds per request and throughput of seven ways to serve one small ONNX model.

All contenders run at once and are driven in turn, round after round, so that the machine's mood hits all alike. CPU
time is that of the contender's whole process tree, less what it uses while idle.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict

from loadtests.bench.client import drive, infer_request
from loadtests.bench.contender import Contender, make_quiet_environment, run_fleet
from loadtests.bench.model import INPUT, picture, session
from loadtests.bench.result import Row, Table, row

BASELINE = "Ray Serve, its own proxy"
SERVERS = "loadtests.bench.servers"
ALONE = "ONNX Runtime alone"
BEHIND = "Fovea gateway + service"


def contenders() -> list[Contender]:
    """The seven ways; ours speak Open Inference v2 with binary tensors, LitServe JSON, the others raw bytes."""
    raw = picture().tobytes()
    body, headers = infer_request(INPUT, picture())
    env = make_quiet_environment(tempfile.mkdtemp(prefix="fovea-bench-"))
    oip = {"path": "/v2/models/tiny/infer", "body": body, "headers": headers}
    service = Contender("Fovea service", f"{SERVERS}.fovea_service", env=env, **oip)
    behind = Contender("Fovea service behind", f"{SERVERS}.fovea_service", env=env, **oip)
    upstream = {"FOVEA_STATIC_UPSTREAMS": f"bench=http://127.0.0.1:{behind.port}"}
    gateway = Contender(BEHIND, f"{SERVERS}.fovea_gateway", env={**env, **upstream}, helpers=(behind,), **oip)
    listed = json.dumps({"image": picture().tolist()}).encode()
    plain = {"path": "/infer", "body": raw, "headers": {"Content-Type": "application/octet-stream"}}
    return [
        service,
        gateway,
        Contender(BASELINE, f"{SERVERS}.ray_proxy", **plain),
        Contender("bare FastAPI", f"{SERVERS}.bare_fastapi", **plain),
        Contender("LitServe (JSON)", f"{SERVERS}.lit", "/infer", listed, {"Content-Type": "application/json"}),
        Contender("mosec", f"{SERVERS}.mosec_server", "/inference", raw, {"Content-Type": "application/octet-stream"}),
    ]


def measure(rounds: int = 5, count: int = 300) -> Table:
    """Alternate all contenders; medians over rounds."""
    fleet = contenders()
    with run_fleet(fleet):
        time.sleep(5)
        cpu, speed = _rounds(fleet, rounds, count)
    return _table(cpu, speed)


def _rounds(fleet: list[Contender], rounds: int, count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    cpu: dict[str, list[float]] = defaultdict(list)
    speed: dict[str, list[float]] = defaultdict(list)
    idle = {c.name: _idle(c) for c in fleet}
    for contender in fleet:
        asyncio.run(drive(contender.port, contender.request, count // 3))
    for _ in range(rounds):
        cpu[ALONE].append(_alone(count))
        for contender in fleet:
            before = contender.cpu_seconds()
            seconds = asyncio.run(drive(contender.port, contender.request, count))
            used = contender.cpu_seconds() - before - idle[contender.name] * seconds
            cpu[contender.name].append(1000 * used / count)
            speed[contender.name].append(count / seconds)
    return cpu, speed


def _idle(contender: Contender, seconds: float = 2.0) -> float:
    before = contender.cpu_seconds()
    time.sleep(seconds)
    return (contender.cpu_seconds() - before) / seconds


def _alone(count: int) -> float:
    feeds = {INPUT: picture()}
    before = time.process_time()
    for _ in range(count):
        session().run(None, feeds)
    return 1000 * (time.process_time() - before) / count


def _table(cpu: dict[str, list[float]], speed: dict[str, list[float]]) -> Table:
    base_cpu, base_speed = statistics.median(cpu[BASELINE]), statistics.median(speed[BASELINE])
    rows: list[Row] = [row(name, "CPU ms / request", values, base_cpu) for name, values in cpu.items()]
    rows += [row(name, "requests / s", values, base_speed) for name, values in speed.items()]
    return Table(
        suite="serving",
        title="Cost of serving one small ONNX model",
        how="closed loop, 4 connections, one batch item of 3×64×64 float32; client on the same 2 cores",
        baseline=BASELINE,
        rows=rows,
        targets={
            "gateway + replica, CPU ms per request (at most)": (statistics.median(cpu[BEHIND]), 1.2),
            "through the gateway, times Ray's proxy (at least)": (statistics.median(speed[BEHIND]) / base_speed, 4.0),
        },
    )
