"""Traffic plan of a service: what share of its requests each version answers, and which version is shadowed."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

STABLE = ""
"""The version of a replica that names none; it answers what the plan gives to no other."""

VERSION_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,31}$"

TRAFFIC_KEY = "fovea:traffic"
"""Redis hash of plans that were set while gateways run: service → `TrafficPlan` as JSON."""


class TrafficPlan(BaseModel):
    """The versions that answer the requests of one service, and those that see copies."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
        if any(share < 0 for share in self.percent.values()) or sum(self.percent.values()) > 100:
            message = "percents must be 0 or more, and 100 at most together"
            raise ValueError(message)
        if self.percent.get(self.shadow or STABLE):
            message = "a shadow answers nobody: it can't have a percent as well"
            raise ValueError(message)
        return self

    def percent_of(self, version: str) -> float:
        """Percent of requests that a version answers."""
        return 100 - sum(self.percent.values()) if version == STABLE else self.percent.get(version, 0.0)


PLANS = TypeAdapter(dict[str, TrafficPlan])
"""Service → plan, as the setting `traffic` holds them."""
