"""Traffic plans: which version of a service may answer, which one does, and which is shown copies.

A plan comes from the setting `traffic`, or from Redis, where an admin puts it for all gateways; Redis wins. Without a
plan, replicas of all versions answer alike. Knows nothing about requests.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis

from services.gateway.routing.affinity import AffinityKey
from shared.api.traffic import PLANS, TRAFFIC_KEY, TrafficPlan


class TrafficPlans:
    """The plans that hold now, by service."""

    def __init__(self, text: str) -> None:
        """Read the setting `traffic`: JSON, empty for none."""
        self._stated: dict[str, TrafficPlan] = PLANS.validate_json(text) if text else {}
        self._set: dict[str, TrafficPlan] = {}

    @property
    def all(self) -> dict[str, TrafficPlan]:
        """Service → plan."""
        return {**self._stated, **self._set}

    def find(self, service: str) -> TrafficPlan | None:
        """The plan of a service, if it has one."""
        return self._set.get(service) or self._stated.get(service)

    async def poll(self, redis: Redis) -> None:
        """Read what was set in Redis; what can't be read is as if it were not there."""
        raw: Mapping[Any, Any] = await redis.hgetall(TRAFFIC_KEY)
        found = {}
        for service, blob in raw.items():
            with suppress(ValidationError):
                found[service.decode()] = TrafficPlan.model_validate_json(blob)
        self._set = found

    async def store(self, redis: Redis, service: str, plan: TrafficPlan | None) -> None:
        """Write a plan into Redis, or take it away, and hold it at once."""
        if plan is None:
            await redis.hdel(TRAFFIC_KEY, service)
        else:
            await redis.hset(TRAFFIC_KEY, service, plan.model_dump_json())
        await self.poll(redis)

    def may_answer(self, service: str, version: str) -> bool:
        """Whether replicas of a version answer requests."""
        plan = self.find(service)
        return plan is None or (version != plan.shadow and plan.percent_of(version) > 0)

    def choose_version(self, service: str, versions: Sequence[str], key: AffinityKey | None) -> str | None:
        """One of several versions that are ready, by their shares; None where any will do.

        What continues a session, a document or a prompt gets the same version each time.
        """
        plan = self.find(service)
        if plan is None or len(versions) < 2:
            return None
        point = random.random() if key is None else int.from_bytes(key.home[:7]) / 2**56
        ordered = sorted(versions)
        point *= sum(plan.percent_of(version) for version in ordered)
        for version in ordered:
            point -= plan.percent_of(version)
            if point < 0:
                return version
        return None

    def draw_shadow(self, service: str) -> str | None:
        """The version that gets a copy of this request; None for most."""
        plan = self.find(service)
        if plan is None or plan.shadow is None or random.random() * 100 >= plan.shadow_percent:
            return None
        return plan.shadow
