"""The scenarios of the real cluster again, simulated, and how far both are apart.

Only the first, one caller at one replica, gives the simulation a number: what a request takes beyond its sleep. All
others are predicted.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from loadtests.simulation.clock import SimulatedClock, simulate
from loadtests.simulation.cluster import SCENARIOS, WARM_S, describe_times
from loadtests.simulation.fleet import Costs, Fleet, simulated_time
from loadtests.simulation.replicas import BatchEngine, Model, Work
from services.gateway.policy.caller import Caller

BEHIND_REPLICAS = 0.4
"""Share of the time beyond a request's sleep that goes by between a batch's end and the caller's next request."""


def predict(measured: Mapping[str, Any], costs: Costs) -> dict[str, dict[str, Any]]:
    """Each scenario, measured and simulated, with the difference of each figure."""
    alone = measured["runs"]["one caller"]["tenants"]["alice"]["mean_s"]
    found = {}
    for title, scenario in SCENARIOS.items():
        with simulated_time() as clock:
            run = _run(clock, costs, scenario, measured["sleep_s"], alone - measured["sleep_s"], measured["slots"])
            simulated = simulate(clock, run)
        found[title] = {"measured": measured["runs"][title], "simulated": simulated}
    return found


async def _run(
    clock: SimulatedClock, costs: Costs, scenario: Mapping[str, Any], sleep_s: float, over_s: float, slots: int
) -> dict[str, Any]:
    model = Model(base=1.0, each=0.0, most=8, slots=slots, is_continuous=False)
    fleet = Fleet(clock, costs, "toy", model)
    for _ in range(scenario["replicas"]):
        fleet.add_replica()
    await asyncio.sleep(1)
    await fleet.add_gateways(1)
    [gateway] = fleet.gateways
    draw = random.Random(1)

    async def call(tenant: str) -> None:
        caller = Caller(tenant, frozenset({"infer"}), key=tenant)
        while True:
            around = over_s * draw.uniform(0.5, 1.5)
            await asyncio.sleep(around * BEHIND_REPLICAS)
            began = clock.now
            await asyncio.sleep(around * (1 - BEHIND_REPLICAS))
            await gateway.serve(caller, "toy", Work(sleep_s), 60.0)
            answers.append((tenant, clock.now, clock.now - began + around * BEHIND_REPLICAS))

    answers: list[tuple[str, float, float]] = []
    callers = [asyncio.create_task(call(name)) for name, count in scenario["callers"].items() for _ in range(count)]
    await asyncio.sleep(WARM_S)
    begin, waited, asked = clock.now, gateway.answers.queue_s, len(answers)
    if kill_at := scenario.get("kill_at"):
        await asyncio.sleep(kill_at)
        fleet.kill(next(iter(fleet.replicas.values())))
    await asyncio.sleep(scenario["seconds"] - (kill_at or 0))
    end, queue_s = clock.now, (gateway.answers.queue_s - waited) / max(len(answers) - asked, 1)
    for task in callers:
        task.cancel()
    engines = [each.engine for each in fleet.replicas.values() if isinstance(each.engine, BatchEngine)]
    together = sum(each.sizes[0] for each in engines) / max(sum(each.sizes[1] for each in engines), 1)
    return {
        "tenants": {
            name: describe_times(
                [seconds for tenant, at, seconds in answers if tenant == name and begin <= at < end], end - begin
            )
            for name in scenario["callers"]
        },
        "together": round(together, 3),
        "lost": sum(count for status, count in gateway.answers.statuses.items() if status != 200),
        "queue_s": round(queue_s, 4),
    }
