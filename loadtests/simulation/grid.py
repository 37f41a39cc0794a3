"""Fleets of 1 to 2,000 replicas behind 1 to 100 gateways for some seconds each, at the same load of each replica."""

import asyncio
import random
from dataclasses import replace
from typing import Any

from loadtests.simulation.clock import SimulatedClock, simulate
from loadtests.simulation.days import read_model
from loadtests.simulation.fleet import Costs, Fleet, simulated_time
from loadtests.simulation.replicas import Work
from services.gateway.policy.caller import Caller

POINTS = ((1, 1), (10, 2), *((count, gateways) for gateways in (4, 16, 100) for count in (100, 500, 1000, 2000)))
"""Replicas and gateways."""

LOAD = 0.6
"""Share of what the replicas can do that is asked of them."""

WARM_S, WINDOW_S = 2.5, 1.5
SETTLE_S = 1.0
SESSIONS_PER_REPLICA = 8


def run(costs: Costs, replicas: int, gateways: int) -> dict[str, Any]:
    """One fleet: what was asked of it and what it answered, and how busy its Redis and gateways were."""
    with simulated_time() as clock:
        return simulate(clock, _run(clock, costs, replicas, gateways))


async def _run(clock: SimulatedClock, costs: Costs, replicas: int, gateways: int) -> dict[str, Any]:
    model, new_s, held_s = read_model()
    fleet, draw = Fleet(clock, costs, "llm-longctx", replace(model, keys=10 * SESSIONS_PER_REPLICA)), random.Random(3)
    for _ in range(replicas):
        await asyncio.sleep(1 / replicas)
        fleet.add_replica()
    # (their start is not measured)
    await asyncio.sleep(1)
    await fleet.add_gateways(gateways)
    mean_s = 0.9 * held_s + 0.1 * new_s
    rate = LOAD * replicas * model.slots / (model.base + model.each * model.slots) / mean_s
    await asyncio.sleep(SETTLE_S)
    tasks: set[asyncio.Task[int]] = set()
    sessions = replicas * SESSIONS_PER_REPLICA
    asked, begin = 0, clock.now + WARM_S
    used: tuple[float, float, int] = (0.0, 0.0, 0)
    while clock.now < begin + WINDOW_S:
        await asyncio.sleep(draw.expovariate(rate))
        if clock.now >= begin and not asked:
            used = _used(fleet)
        asked += clock.now >= begin
        tenant = f"tenant-{draw.randrange(20)}"
        longer, is_new = draw.uniform(0.5, 1.5), draw.random() < 0.1
        work = Work(
            (new_s if is_new else held_s) * longer, held_s * longer, draw.randrange(sessions).to_bytes(4, "big")
        )
        caller = Caller(tenant, frozenset({"infer"}), key=tenant)
        task = asyncio.create_task(draw.choice(fleet.gateways).serve(caller, "llm-longctx", work, 60.0))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    then = _used(fleet)
    times = sorted(s for g in fleet.gateways for at, _, s in g.answers.seconds if at >= begin)
    for task in tasks:
        task.cancel()
    return {
        "replicas": replicas, "gateways": gateways, "asked_per_second": round(rate, 1),
        "answered_per_second": round(len(times) / WINDOW_S, 1),
        "median_s": round(times[len(times) // 2], 3) if times else None,
        "redis_share": round((then[0] - used[0]) / WINDOW_S, 4),
        "gateway_share": round((then[1] - used[1]) / WINDOW_S / gateways, 4),
        "redis_bytes_per_second": round((then[2] - used[2]) / WINDOW_S),
        "gateway_backlog_s": round(max(g.processor.backlog_s for g in fleet.gateways), 3),
        "redis_backlog_s": round(fleet.redis.processor.backlog_s, 3),
        "seen_ready": min(len(g.registry.list_ready("llm-longctx")) for g in fleet.gateways),
    }  # fmt: skip


def _used(fleet: Fleet) -> tuple[float, float, int]:
    gateways = sum(gateway.processor.used_s for gateway in fleet.gateways)
    return fleet.redis.processor.used_s, gateways, fleet.redis.bytes_sent
