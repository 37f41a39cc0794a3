"""Three days of a service of text: daily waves, bursts of one tenant, jobs at night, failures and a rollout a day."""

import asyncio
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from loadtests.simulation.clock import SimulatedClock, simulate
from loadtests.simulation.fleet import LOOK_BACK_S, METRICS_INTERVAL_S, Autoscaler, Costs, Fleet, simulated_time
from loadtests.simulation.replicas import Model, SimulatedReplica, Work
from loadtests.simulation.workers import Workers
from services.gateway.policy.caller import Caller

RESULTS = Path(__file__).parents[1] / "bench/results"
DAY_S, BUCKET_S = 86_400.0, 1_200.0
LOW, HIGH, IN_FLIGHT = 2, 16, 8
"""Fewest and most replicas, and the requests in flight beyond which another one is started: those of the chart."""

REPLICA_START_S = 30.0
"""Until a new pod's replica is ready: 12 to 19 s for a node of Ray and 11 to 18 s for its replica."""

DEADLINE_S = 60.0
GATEWAYS = 3
TENANTS = {"alice": 0.45, "bob": 0.3, "carol": 0.2, "dave": 0.05}
SESSIONS_PER_TENANT, NEW_SESSION_SHARE = 12, 0.05
MEAN_RATE, WAVE, WEEKEND = 3.5, 0.75, 0.6
"""Requests a second on average; the wave of a day, as a share of it; the third day's share."""

BURST_EVERY_S, BURST_S, BURST_RATE = 6 * 3600.0, 600.0, 20.0
"""Dave sends so many requests a second for ten minutes, four times a day."""

KILL_EVERY_S, REDIS_AWAY_AT, REDIS_AWAY_S, ROLLOUT_AT = 4 * 3600.0, 15 * 3600.0, 60.0, 11 * 3600.0
NIGHT_JOBS, NIGHT_AT = 400, 2 * 3600.0


def read_model() -> tuple[Model, float, float]:
    """A text model with the judge's times, measured: seconds of a prompt that is new, and of a held one."""
    rows = {row["name"]: row["median"] for row in json.loads((RESULTS / "judge.json").read_text("utf8"))["rows"]}
    serving = json.loads((RESULTS / "longctx_serving.json").read_text("utf8"))["rows"]
    together = {row["name"]: row["median"] for row in serving}
    slowness = 8 * together["8 requests together bf16"] / together["8 requests one by one bf16"]
    each = (slowness - 1) / 7
    model = Model(base=1 - each, each=each, most=16, slots=16, is_continuous=True, keys=40)
    return model, 1 / rows["every prompt new"], 1 / rows["shared prefix known"]


def rate_at(seconds: float) -> float:
    """Requests a second of all tenants together, bursts apart."""
    share = WEEKEND if seconds >= 2 * DAY_S else 1.0
    return MEAN_RATE * share * (1 + WAVE * math.sin(2 * math.pi * (seconds / DAY_S - 0.375)))


class Days:
    """The course of some days."""

    def __init__(self, clock: SimulatedClock, fleet: Fleet, days: float) -> None:
        self.buckets: list[dict[str, Any]] = []
        self.events: list[tuple[float, str]] = []
        self._clock, self._fleet, self._seconds = clock, fleet, days * DAY_S
        self._began, self._draw = clock.now, random.Random(7)
        self._numbers = itertools.count()
        self._sessions = {name: [self._new_key() for _ in range(SESSIONS_PER_TENANT)] for name in TENANTS}
        _, self._new_s, self._held_s = read_model()
        self._autoscaler = Autoscaler(LOW, HIGH, IN_FLIGHT)
        self._target = self._most = LOW
        self._tasks: set[asyncio.Task[Any]] = set()
        self._workers = Workers(lambda: self._serve("night"), per_worker=2, most=4, at_once=2)

    @property
    def at(self) -> float:
        """Seconds since it began."""
        return self._clock.now - self._began

    async def run(self) -> dict[str, Any]:
        """Let the days go by."""
        for act in (
            self._arrive(),
            self._burst(),
            self._scale(),
            self._fail(),
            self._roll_out(),
            self._queue_jobs(),
            self._workers.scale(),
        ):
            self._start(act)
        while self.at < self._seconds:
            await asyncio.sleep(BUCKET_S)
            self.buckets.append(self._describe())
        statuses: Counter[str] = Counter()
        for gateway in self._fleet.gateways:
            statuses.update({str(status): count for status, count in gateway.answers.statuses.items()})
        fleet, waits = self._fleet, sorted(self._workers.waits)
        hits = fleet.hits + sum(each.hits for each in fleet.replicas.values())
        misses = fleet.misses + sum(each.misses for each in fleet.replicas.values())
        return {
            "days": self._seconds / DAY_S, "gateways": GATEWAYS, "statuses": dict(statuses),
            "retried": sum(gateway.answers.retried for gateway in fleet.gateways),
            "held_share": round(hits / max(hits + misses, 1), 4),
            "jobs": {
                "count": len(waits), "wait_median_s": round(waits[len(waits) // 2], 1) if waits else 0.0,
                "wait_longest_s": round(waits[-1], 1) if waits else 0.0,
                "pod_hours": round(self._workers.pod_seconds / 3600, 2),
            },
            "redis_share": round(fleet.redis.processor.used_s / self._seconds, 6),
            "gateway_share": round(sum(g.processor.used_s for g in fleet.gateways) / GATEWAYS / self._seconds, 6),
            "buckets": self.buckets, "events": [[round(at), what] for at, what in self.events],
        }  # fmt: skip

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _new_key(self) -> bytes:
        return next(self._numbers).to_bytes(4, "big")

    async def _serve(self, tenant: str) -> None:
        sessions = self._sessions.setdefault(tenant, [self._new_key()])
        if self._draw.random() < NEW_SESSION_SHARE:
            sessions[self._draw.randrange(len(sessions))] = self._new_key()
        longer = self._draw.expovariate(1.0)
        work = Work(self._new_s * longer, self._held_s * longer, self._draw.choice(sessions))
        caller = Caller(tenant, frozenset({"infer"}), key=tenant)
        await self._draw.choice(self._fleet.gateways).serve(caller, "llm-longctx", work, DEADLINE_S)

    async def _arrive(self) -> None:
        most, names, shares = MEAN_RATE * (1 + WAVE), list(TENANTS), list(TENANTS.values())
        async for _ in self._beat(most):
            if self._draw.random() * most < rate_at(self.at):
                self._start(self._serve(self._draw.choices(names, shares)[0]))

    async def _burst(self) -> None:
        while True:
            await asyncio.sleep(BURST_EVERY_S)
            self.events.append((self.at, "burst"))
            until = self.at + BURST_S
            async for _ in self._beat(BURST_RATE):
                if self.at > until:
                    break
                self._start(self._serve("dave"))

    async def _beat(self, rate: float) -> AsyncIterator[None]:
        while True:
            await asyncio.sleep(self._draw.expovariate(rate))
            yield

    async def _queue_jobs(self) -> None:
        await asyncio.sleep(NIGHT_AT)
        while True:
            for _ in range(NIGHT_JOBS):
                self._workers.submit()
            await asyncio.sleep(DAY_S)

    async def _scale(self) -> None:
        """Do as Ray's controller: look at the mean load, decide, start or drain."""
        samples: list[float] = []
        while True:
            await asyncio.sleep(METRICS_INTERVAL_S)
            self._most = max(self._most, len(self._fleet.replicas))
            samples = [*samples, self._fleet.busy][-int(LOOK_BACK_S / METRICS_INTERVAL_S) :]
            target = self._autoscaler.decide(sum(samples) / len(samples), self._target, self._clock.now)
            for _ in range(target - self._target):
                self._start(self._add_later())
            for replica in list(self._fleet.replicas.values())[: max(self._target - target, 0)]:
                self._start(self._fleet.remove(replica))
            self._target = target

    async def _add_later(self) -> SimulatedReplica:
        await asyncio.sleep(REPLICA_START_S * self._draw.uniform(0.8, 1.2))
        return self._fleet.add_replica()

    async def _fail(self) -> None:
        """Kill a replica every few hours, whom Ray replaces, and take Redis away for a minute a day."""
        for number in itertools.count(1):
            await asyncio.sleep(KILL_EVERY_S)
            if victims := list(self._fleet.replicas.values()):
                self.events.append((self.at, "kill"))
                self._fleet.kill(self._draw.choice(victims))
                self._start(self._add_later())
            if number % 6 == 4:
                self.events.append((self.at, "redis"))
                self._fleet.redis.is_up = False
                await asyncio.sleep(REDIS_AWAY_S)
                self._fleet.redis.is_up = True

    async def _roll_out(self) -> None:
        """A new cluster next to the old one, whose replicas go when the new ones are ready, as KubeRay does it."""
        await asyncio.sleep(ROLLOUT_AT)
        while True:
            self.events.append((self.at, "rollout"))
            old = list(self._fleet.replicas.values())
            await asyncio.gather(*(self._add_later() for _ in old))
            await asyncio.sleep(60)
            for replica in old:
                self._start(self._fleet.remove(replica))
            await asyncio.sleep(DAY_S - 60 - REPLICA_START_S)

    def _describe(self) -> dict[str, Any]:
        """The last bucket, and forget it."""
        times = [one for gateway in self._fleet.gateways for one in gateway.answers.seconds]
        for gateway in self._fleet.gateways:
            gateway.answers.seconds.clear()
        most, self._most = self._most, len(self._fleet.replicas)
        ordered = sorted(seconds for _, _, seconds in times)
        other = sorted(seconds for _, tenant, seconds in times if tenant == "alice")
        return {
            "hours": round(self.at / 3600, 2),
            "per_second": round(len(times) / BUCKET_S, 3),
            "replicas": most,
            "median_s": round(ordered[len(ordered) // 2], 3),
            "p99_s": round(ordered[int(0.99 * len(ordered))], 3),
            "alice_p99_s": round(other[int(0.99 * len(other))], 3),
        }


def run(costs: Costs, days: float = 3.0) -> dict[str, Any]:
    """Simulate some days."""

    async def begin(clock: SimulatedClock) -> dict[str, Any]:
        fleet = Fleet(clock, costs, "llm-longctx", read_model()[0])
        for _ in range(LOW):
            fleet.add_replica()
        await asyncio.sleep(1)
        await fleet.add_gateways(GATEWAYS)
        return await Days(clock, fleet, days).run()

    with simulated_time() as clock:
        return simulate(clock, begin(clock))
