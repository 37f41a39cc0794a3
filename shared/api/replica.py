"""How a replica makes itself known: a small record in Redis that it renews while it lives.

Replicas write, the gateway reads; neither knows the other. A replica that stops renewing is forgotten after `LEASE_S`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LEASE_S", "RENEW_S", "ReplicaRecord", "replicas_key"]

RENEW_S = 1.0
"""Seconds between two renewals."""

LEASE_S = 5.0
"""Seconds without a renewal after which a record no longer counts."""


def replicas_key(service: str) -> str:
    """Redis hash that holds the replicas of a service: replica id → Replica as JSON."""
    return f"fovea:replicas:{service}"


class ReplicaRecord(BaseModel):
    """Where one replica listens and what it serves."""

    model_config = ConfigDict(frozen=True)

    id: str
    service: str
    http: str = Field(description="Base URL, for example http://127.0.0.1:40123.")
    grpc: str | None = Field(None, description="host:port of its Open Inference gRPC front.")
    pid: int
    ready: bool = Field(
        description="Whether it can answer: nothing is still loading, and not every model failed to load."
    )
    models: tuple[str, ...] = Field(description="Names it serves, for routing by model name.")
    routes: tuple[str, ...] = Field(
        (), description="Paths that it answers, for routing by path, for example /v1/segment."
    )
    seen: float = Field(description="Unix time of the last renewal.")
