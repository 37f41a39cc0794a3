"""A fleet of the simulation: replicas, gateways and their Redis, and Ray's autoscaler with the product's own policy."""

import asyncio
import contextlib
import importlib
import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import structlog

from loadtests.simulation.clock import SimulatedClock, govern
from loadtests.simulation.gateways import GatewayCosts, SimulatedGateway
from loadtests.simulation.redis import RedisClient, RedisCosts, SimulatedRedis
from loadtests.simulation.replicas import Model, SimulatedReplica
from services.gateway.policy import fair_queue, quotas
from services.gateway.routing import replica_registry
from shared.serving import heartbeat
from shared.settings import Settings
from shared.telemetry import configure_logs

METRICS_INTERVAL_S, LOOK_BACK_S = 10.0, 30.0
"""Ray's defaults: how often replicas report their load, and over how long it is averaged."""


NEW_KEYS = 0.1
"""Assumed share of requests whose session or prompt the gateway does not know yet."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs, as the parts of the simulation take them."""

    redis: RedisCosts
    gateway: GatewayCosts


def read_costs(units: dict[str, Any], request_s: float) -> Costs:
    """Costs from the unit costs and from a gateway's processor time per request."""
    redis, most = units["redis"], units["gateway"][-1]
    pick_s = NEW_KEYS * most["pick_new_s"] + (1 - NEW_KEYS) * most["pick_known_s"]
    route = (most["place_s"] + pick_s) / most["replicas"]
    return Costs(
        RedisCosts(redis["command_s"], redis["renewal_s"], redis["record_s"], redis["count_s"]),
        GatewayCosts(request_s, route, most["refresh_s"] / most["replicas"]),
    )


class Fleet:
    """Replicas of one service behind gateways."""

    def __init__(self, clock: SimulatedClock, costs: Costs, service: str, model: Model) -> None:
        self.clock, self.redis = clock, SimulatedRedis(clock, costs.redis)
        self.replicas: dict[str, SimulatedReplica] = {}
        self.gateways: list[SimulatedGateway] = []
        self.hits = self.misses = 0
        self._costs, self._service, self._model = costs, service, model
        self._numbers = itertools.count()
        self._settings = Settings(
            redis_url="redis://simulated", enabled_services=service, auth="keys", rate_limit_rpm=10_000_000,
        )  # fmt: skip

    def add_replica(self) -> SimulatedReplica:
        """A replica that announces itself from now on."""
        client = RedisClient(self.redis)
        replica = SimulatedReplica(next(self._numbers), self._service, self._model, self.clock, client)
        self.replicas[replica.id] = replica
        replica.start()
        return replica

    async def add_gateways(self, count: int) -> None:
        """Gateways that know the replicas; they come up over half a second, as pods do."""
        for number in range(count):
            gateway = SimulatedGateway(self.clock, self.redis, self._costs.gateway, self.replicas, self._settings)
            await asyncio.sleep(0.5 / count if number else 0)
            await gateway.registry.start()
            self.gateways.append(gateway)

    async def remove(self, replica: SimulatedReplica) -> None:
        """Drain a replica."""
        await replica.drain()
        self.forget(replica)

    def kill(self, replica: SimulatedReplica) -> None:
        """`kill -9` of a replica."""
        replica.kill()
        self.forget(replica)

    def forget(self, replica: SimulatedReplica) -> None:
        """It is gone: connections to it are refused."""
        self.hits, self.misses = self.hits + replica.hits, self.misses + replica.misses
        self.replicas.pop(replica.id, None)

    @property
    def busy(self) -> int:
        """Requests in all replicas."""
        return sum(replica.engine.busy for replica in self.replicas.values())


class Autoscaler:
    """Ray's: our policy `shared.serving.ray.scale` says how many, and Ray's own delays when."""

    def __init__(self, low: int, high: int, busy_per_replica: int) -> None:
        ours = importlib.import_module("shared.serving.ray")
        rays = importlib.import_module("ray.serve.autoscaling_policy")
        config: Any = importlib.import_module("ray.serve.config").AutoscalingConfig
        self._scale, self._delay = ours.scale, rays._apply_delay_logic
        self._config = config(min_replicas=low, max_replicas=high, upscale_delay_s=10.0)
        self._busy_per_replica, self._low, self._high = busy_per_replica, low, high
        self._state: dict[str, Any] = {}

    def decide(self, busy: float, target: int, now: float) -> int:
        """The number of replicas that is wanted now, from the mean of requests in flight."""
        context = SimpleNamespace(
            aggregated_metrics={"busy": {"all": busy}},
            capacity_adjusted_min_replicas=self._low,
            capacity_adjusted_max_replicas=self._high,
        )
        wanted, _ = self._scale(context, self._busy_per_replica)
        decided, self._state = self._delay(wanted, target, self._config, self._state, now)
        return int(decided)


@contextlib.contextmanager
def simulated_time(seed: int = 1) -> Iterator[SimulatedClock]:
    """A clock that everything of the gateway and of heartbeats reads; choices by chance are the same each time.

    Nothing is logged meanwhile.
    """
    clock, level, kept = SimulatedClock(), logging.root.level, structlog.get_config()
    configure_logs("CRITICAL", "console")
    random.seed(seed)
    try:
        with govern(clock, replica_registry, fair_queue, quotas, heartbeat):
            yield clock
    finally:
        structlog.configure(**kept)
        logging.root.setLevel(level)
