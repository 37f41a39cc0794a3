"""Traffic plans: which version of a service may answer, which one does, and which is shown copies.

A plan comes from the setting `traffic`, or from Redis, where an admin puts it for all gateways; Redis wins. Without a
plan, replicas of all versions answer alike. Knows nothing about requests.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fovea.errors import NotReady
from services.gateway.routing.affinity import AffinityKey
from services.gateway.routing.version_policy import VersionPolicy

STABLE = ""
"""The version of a replica that names none; it answers what the plan gives to no other."""

VERSION_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,31}$"

TRAFFIC_KEY = "fovea:traffic"
"""Redis hash of plans that were set while gateways run: service → `TrafficPlan` as JSON."""


class TrafficPlan(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The versions that answer the requests of one service, and those that see copies."""

    percent: dict[Annotated[str, Field(pattern=VERSION_PATTERN)], float] = Field(
        default_factory=dict, description="Version → percent of requests; what is left goes to replicas of no version."
    )
    shadow: str | None = Field(
        None,
        pattern=VERSION_PATTERN,
        description="Version that is sent copies and answers nobody; answers of moderate size are compared.",
    )
    shadow_percent: float = Field(10.0, ge=0, le=100, description="Percent of requests that are copied.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(share < 0 for share in self.percent.values()) or self.percent_of(STABLE) < 0:
            raise ValueError("percents must be 0 or more, and 100 at most together")
        if self.percent.get(self.shadow or STABLE):
            raise ValueError("a shadow answers nobody: it can't have a percent as well")
        return self

    def percent_of(self, version: str) -> float:
        """Percent of requests that a version answers."""
        left = round(100 - sum(self.percent.values()), 6)  # 93.2 + 1.9 + 4.9 is more than 100
        return left if version == STABLE else self.percent.get(version, 0.0)


PLANS = TypeAdapter(dict[str, TrafficPlan])
"""Service → plan, as the setting `traffic` holds them."""


class RolloutSettings(BaseSettings):
    """Settings of rollouts."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_", frozen=True)

    traffic: str = Field(
        "",
        description="Versions that answer the requests of a service, as JSON: "
        '`{"detection": {"percent": {"canary": 5}, "shadow": "next", "shadow_percent": 10}}`; '
        "`/v1/admin/traffic` sets it for all gateways.",
    )


class TrafficPlans(VersionPolicy):
    """The plans that hold now, by service."""

    def __init__(self, redis: Redis | None) -> None:
        super().__init__(redis)
        self._redis = redis
        text = RolloutSettings().traffic
        try:
            self._stated: dict[str, TrafficPlan] = PLANS.validate_json(text) if text else {}
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, ("FOVEA_TRAFFIC", *first["loc"])))
            sys.stderr.write(f"The settings can't be used. {where}: {first['msg']}.\n")
            sys.exit(2)
        self._set: dict[str, TrafficPlan] = {}

    def find(self, service: str) -> TrafficPlan | None:
        """The plan of a service, if it has one."""
        return self._set.get(service) or self._stated.get(service)

    async def poll(self) -> None:
        if self._redis is None:
            return
        raw: Mapping[Any, Any] = await self._redis.hgetall(TRAFFIC_KEY)
        found = {}
        for service, blob in raw.items():
            with suppress(ValidationError):  # what can't be read is as if it were not there
                found[service.decode()] = TrafficPlan.model_validate_json(blob)
        self._set = found

    async def set_plan(self, service: str, plan: TrafficPlan | None) -> None:
        """Write the plan of a service for all gateways, or take it away, and hold it at once.

        Raises NotReady: there is no Redis, or it does not answer.
        """
        if self._redis is None:
            raise NotReady("Traffic plans are shared through Redis, and none is configured.", hint="Set FOVEA_TRAFFIC.")
        try:
            if plan is None:
                await self._redis.hdel(TRAFFIC_KEY, service)
            else:
                await self._redis.hset(TRAFFIC_KEY, service, plan.model_dump_json())
            await self.poll()
        except (RedisError, OSError, TimeoutError) as error:
            raise NotReady("Redis is away.", hint="Try again in a moment.", retry_after=1) from error

    def may_answer(self, service: str, version: str) -> bool:
        plan = self.find(service)
        return plan is None or (version != plan.shadow and plan.percent_of(version) > 0)

    def choose_version(self, service: str, versions: Sequence[str], key: AffinityKey | None) -> str | None:
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
