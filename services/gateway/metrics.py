"""Prometheus metrics of what the gateway alone decides: where requests go.

`shared.telemetry` has those of every process. Knows prometheus_client; callers pass plain values.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Histogram

_AFFINITY = Counter(
    "fovea_affinity_picks_total",
    "Replicas picked for what they may hold: one was sent it before (held), its home, or another for load (spilled).",
    ["service", "outcome"],
)

_VERSIONS = Counter(
    "fovea_version_requests_total", "Requests sent to replicas of a version.", ["service", "version", "status"]
)
_SHADOWS = Counter(
    "fovea_shadow_requests_total",
    "Requests drawn for a shadow: compared, incomparable, failed, skipped as too large, or dropped as too many.",
    ["service", "version", "outcome"],
)
_SHADOW_SECONDS = Histogram(
    "fovea_shadow_seconds",
    "Whole request at a shadow.",
    ["service", "version"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
_AGREEMENT = Histogram(
    "fovea_shadow_agreement",
    "Agreement of a shadow's answer with the one that was given: text, boxes, mask, picture or json.",
    ["service", "version", "kind"],
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 1),
)


def count_affinity(service: str, outcome: str) -> None:
    """Count a replica that was picked by an affinity key: `held`, `home` or `spilled`."""
    _AFFINITY.labels(service, outcome).inc()


def count_version(service: str, version: str, status: int) -> None:
    """Count an answer of a replica that names its version."""
    _VERSIONS.labels(service, version, str(status)).inc()


def count_shadow(service: str, version: str, outcome: str) -> None:
    """Count a request that was to be copied to a shadow."""
    _SHADOWS.labels(service, version, outcome).inc()


def observe_shadow(service: str, version: str, seconds: float, agreement: Mapping[str, float]) -> None:
    """Observe how long a shadow took, and by kind how far it agrees."""
    _SHADOW_SECONDS.labels(service, version).observe(seconds)
    for kind, share in agreement.items():
        _AGREEMENT.labels(service, version, kind).observe(share)
