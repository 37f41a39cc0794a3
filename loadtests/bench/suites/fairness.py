"""Cost of one tenant's flood for another: the latency of single requests, quiet and loud, round after round.

A gateway with keys stands before one replica of a model that takes 20 ms a request, one after the other. Tenant `bob`
asks for one thing at a time, with pauses of random length; in loud rounds `alice` has fifty requests open all the time.
What is in service when bob comes is finished first, which costs him half a request on average.
"""

import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from pathlib import Path

from loadtests.bench.client import read_answer, request_bytes
from loadtests.bench.contender import Contender, run_fleet
from loadtests.bench.result import Table, row
from services.gateway.policy.auth import KeyRing

SERVERS = "loadtests.bench.servers"
FLOOD = 50
SETTLE_S = 0.5
"""From the begin of a flood to the first measurement: what the other began while it was alone is over."""

MAX_PAUSE_S = 0.06
PATH, BODY = "/v1/echo", b"{}"
QUIET, LOUD = "bob, quiet", "bob, while alice floods"


def measure(rounds: int = 5, count: int = 200) -> Table:
    """Alternate quiet and loud rounds."""
    gateway, keys = _make_gateway()
    quiet: list[list[float]] = []
    loud: list[list[float]] = []
    flooded: list[float] = []
    with run_fleet([gateway]):
        time.sleep(8)  # the gateway learns the routes
        asyncio.run(_ask(gateway.port, keys["bob"], 5))
        for _ in range(rounds):
            quiet.append(asyncio.run(_ask(gateway.port, keys["bob"], count // rounds)))
            times, rate = asyncio.run(_ask_in_flood(gateway.port, keys, count // rounds))
            loud.append(times)
            flooded.append(rate)
    return _table(quiet, loud, flooded)


def _make_gateway() -> tuple[Contender, dict[str, str]]:
    folder = Path(tempfile.mkdtemp(prefix="fovea-bench-"))
    ring = KeyRing(folder / "keys.json")
    keys = {name: ring.add(name, ("infer",), rate_per_minute=100_000_000)[1] for name in ("alice", "bob")}
    env = {"FOVEA_DATA_DIR": str(folder), "FOVEA_LOG_LEVEL": "WARNING", "FOVEA_MAX_BATCH_DELAY_MS": "0"}
    # What a gateway knows itself by at its replicas is kept in the folder that they share.
    service = Contender("slow service", f"{SERVERS}.slow_service", PATH, BODY, env=env)
    more = {"FOVEA_STATIC_UPSTREAMS": f"bench=http://127.0.0.1:{service.port}", "FOVEA_AUTH": "keys"}
    return Contender("gateway", f"{SERVERS}.fovea_gateway", PATH, BODY, env=env | more, helpers=(service,)), keys


def _request(port: int, key: str) -> bytes:
    return request_bytes(port, PATH, BODY, {"Content-Type": "application/json", "X-API-Key": key})


async def _ask(port: int, key: str, count: int) -> list[float]:
    """Milliseconds of `count` requests, one after the other.

    Raises:
        RuntimeError: An answer was not 200.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    pauses, times = random.Random(count), []
    for _ in range(count):
        await asyncio.sleep(pauses.random() * MAX_PAUSE_S)
        begun = time.perf_counter()
        writer.write(_request(port, key))
        if (status := await read_answer(reader)) != 200:
            raise RuntimeError(f"the gateway answered {status}")
        times.append(1000 * (time.perf_counter() - begun))
    writer.close()
    return times


async def _ask_in_flood(port: int, keys: dict[str, str], count: int) -> tuple[list[float], float]:
    """As `_ask`, while the other tenant floods; and the requests a second that the flood was answered."""
    answered = 0

    async def flood() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            writer.write(_request(port, keys["alice"]))
            status = await read_answer(reader)
            answered += status == 200

    flooding = [asyncio.create_task(flood()) for _ in range(FLOOD)]
    await _ask(port, keys["bob"], 2)  # the flood is not alone any more
    await asyncio.sleep(SETTLE_S)
    before, begun = answered, time.perf_counter()
    times = await _ask(port, keys["bob"], count)
    rate = (answered - before) / (time.perf_counter() - begun)
    for task in flooding:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*flooding, return_exceptions=True)
    await asyncio.sleep(SETTLE_S)
    return times, rate


def _table(quiet: list[list[float]], loud: list[list[float]], flooded: list[float]) -> Table:
    medians = [[statistics.median(each) for each in rounds] for rounds in (quiet, loud)]
    base = statistics.median(medians[0])
    worst = [[statistics.quantiles(each, n=10)[-1] for each in rounds] for rounds in (quiet, loud)]
    return Table(
        suite="fairness",
        title="A flood of one tenant beside another's single requests",
        how=f"one replica, 20 ms a request; {FLOOD} requests of alice open, one of bob; clients on the same cores",
        baseline=QUIET,
        rows=[
            row(QUIET, "ms, median", medians[0], base),
            row(LOUD, "ms, median", medians[1], base),
            row(QUIET, "ms, 90th percentile", worst[0], base),
            row(LOUD, "ms, 90th percentile", worst[1], base),
            row("alice's flood", "requests / s", flooded, 50, "× the 50 that the replica can do"),
        ],
        targets={"loud median, times the quiet one (at most)": (statistics.median(medians[1]) / base, 1.5)},
    )
