"""Prometheus metrics of what the gateway alone decides: where requests go.

`shared.telemetry` has those of every process. Knows prometheus_client; callers pass plain values.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

_AFFINITY = Counter(
    "fovea_affinity_picks_total",
    "Replicas picked for what they may hold: one was sent it before (held), its home, or another for load (spilled).",
    ["service", "outcome"],
)

_VERSIONS = Counter(
    "fovea_version_requests_total", "Requests sent to replicas of a version.", ["service", "version", "status"]
)

WAITING_REQUESTS = Gauge(
    "fovea_waiting_requests", "Requests that wait for the first replica of a service on demand.", ["service"]
)


def count_affinity(service: str, outcome: str) -> None:
    """Count a replica that was picked by an affinity key: `held`, `home` or `spilled`."""
    _AFFINITY.labels(service, outcome).inc()


def count_version(service: str, version: str, status: int) -> None:
    """Count an answer of a replica that names its version."""
    _VERSIONS.labels(service, version, str(status)).inc()
