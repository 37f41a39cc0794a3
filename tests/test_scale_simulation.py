"""The simulation of scale: time passes as it says, real policies decide, and what it says holds on a real cluster."""

import asyncio
import itertools
import json
import time

import pytest
import structlog

from loadtests.simulation import page, predict
from loadtests.simulation.clock import START_S, Processor, SimulatedClock, simulate
from loadtests.simulation.fleet import Fleet, read_costs, simulated_time
from loadtests.simulation.replicas import Model, Work
from services.gateway.policy.caller import Caller, KeyLimits

# Ray's own use of pydantic, which it has to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
RESULTS = json.loads(page.RESULTS.read_text("utf8"))
COSTS = read_costs(RESULTS["units"], page.read_request_cost())
TEXT = Model(base=0.75, each=0.25, most=4, slots=4, is_continuous=True, keys=10)


def run(work):
    """Result of a coroutine function of the clock."""
    kept = structlog.get_config()
    with simulated_time() as clock:
        found = simulate(clock, work(clock))
    assert structlog.get_config() == kept  # others log after it
    return found


async def start(clock, replicas, gateways, model=TEXT):
    fleet = Fleet(clock, COSTS, "svc", model)
    for _ in range(replicas):
        fleet.add_replica()
    await asyncio.sleep(1)
    await fleet.add_gateways(gateways)
    return fleet


def test_days_pass_in_no_time_and_a_core_does_one_thing_at_a_time():
    clock = SimulatedClock()

    async def work():
        core = Processor(clock)
        await asyncio.gather(core.work(30), core.work(12, delay_s=1))
        assert (clock.now - START_S, core.used_s) == (43, 42)
        await asyncio.sleep(3 * 86_400)
        return clock.time() - START_S

    began = time.monotonic()
    assert simulate(clock, work()) == pytest.approx(3 * 86_400 + 43)
    assert time.monotonic() - began < 30
    with pytest.raises(RuntimeError, match="stuck"):
        simulate(clock, asyncio.Event().wait())


def test_what_is_predicted_holds_on_the_real_cluster():
    rows = [row for row in page.compare(predict.predict(RESULTS["cluster"], COSTS)) if "wait" not in row[1]]
    assert len(rows) >= 15
    assert {row[:2]: row[3] for row in rows} == {row[:2]: pytest.approx(row[2], rel=0.15) for row in rows}


def test_a_flood_waits_behind_itself_and_rates_of_keys_are_kept():
    async def work(clock):
        fleet, statuses, times = await start(clock, 2, 1), [], []
        alice, bob = (Caller(name, frozenset({"infer"}), key=name) for name in ("alice", "bob"))
        slow = Caller("slow", frozenset({"infer"}), key="slow", limits=KeyLimits(rate_per_minute=3))

        async def flood():
            while True:
                await fleet.gateways[0].serve(alice, "svc", Work(1.0), 60)

        flooding = [asyncio.create_task(flood()) for _ in range(60)]
        await asyncio.sleep(20)
        for _ in range(5):
            statuses.append(await fleet.gateways[0].serve(slow, "svc", Work(0.1), 60))
            began = clock.now
            assert await fleet.gateways[0].serve(bob, "svc", Work(1.0), 60) == 200
            times.append(clock.now - began)
        for task in flooding:
            task.cancel()
        return statuses, max(times)

    statuses, longest = run(work)
    assert statuses == [200, 200, 200, 429, 429]
    assert longest < 6, "the flood itself waits 13 s"


def test_no_request_is_lost_to_a_killed_replica_a_rollout_or_a_redis_that_is_away():
    async def work(clock):
        fleet, caller = await start(clock, 4, 2), Caller("alice", frozenset({"infer"}), key="alice")
        numbers = itertools.count()

        async def ask():
            while True:
                gateway = fleet.gateways[next(numbers) % 2]
                await gateway.serve(caller, "svc", Work(1.0, 0.5, bytes([next(numbers) % 7])), 60)

        asking = [asyncio.create_task(ask()) for _ in range(12)]
        await asyncio.sleep(10)
        fleet.kill(next(iter(fleet.replicas.values())))
        await asyncio.sleep(10)
        fleet.redis.is_up = False
        await asyncio.sleep(30)
        fleet.redis.is_up = True
        old = list(fleet.replicas.values())
        for _ in old:
            fleet.add_replica()
        await asyncio.sleep(10)
        await asyncio.gather(*map(fleet.remove, old))
        await asyncio.sleep(10)
        for task in asking:
            task.cancel()
        alive = [len(gateway.registry.list_alive("svc")) for gateway in fleet.gateways]
        return [gateway.answers for gateway in fleet.gateways], alive, list(fleet.replicas.values())

    answers, alive, replicas = run(work)
    assert {status for one in answers for status in one.statuses} == {200}
    assert sum(one.retried for one in answers) >= 3, "those that the killed replica had"
    assert alive == [3, 3]
    assert sum(each.hits for each in replicas) > sum(each.misses for each in replicas), "sessions go where they were"


def test_a_part_that_costs_twice_is_full_at_half_the_replicas():
    limits = page.find_limits(RESULTS, 16, 0.5)
    redis = {**RESULTS["units"]["redis"], "record_bytes": 2 * RESULTS["units"]["redis"]["record_bytes"]}
    doubled = page.find_limits({**RESULTS, "units": {**RESULTS["units"], "redis": redis}}, 16, 0.5)
    assert doubled["Redis, network"] == pytest.approx(limits["Redis, network"] / 2)
    assert {part for part in limits if doubled[part] != limits[part]} == {"Redis, network"}
