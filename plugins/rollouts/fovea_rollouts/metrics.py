"""Prometheus metrics of shadows."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Histogram

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


def count_shadow(service: str, version: str, outcome: str) -> None:
    """Count a request that was to be copied to a shadow."""
    _SHADOWS.labels(service, version, outcome).inc()


def observe_shadow(service: str, version: str, seconds: float, agreement: Mapping[str, float]) -> None:
    """Observe how long a shadow took, and by kind how far it agrees."""
    _SHADOW_SECONDS.labels(service, version).observe(seconds)
    for kind, share in agreement.items():
        _AGREEMENT.labels(service, version, kind).observe(share)
