"""Prometheus metrics of what the gateway alone decides: where requests go.

`shared.telemetry` has those of every process.
"""

from prometheus_client import Counter, Gauge

AFFINITY_PICKS = Counter(
    "fovea_affinity_picks_total",
    "Replicas picked for what they may hold: one was sent it before (held), its home, or another for load (spilled).",
    ["service", "outcome"],
)

VERSION_REQUESTS = Counter(
    "fovea_version_requests_total", "Requests sent to replicas of a version.", ["service", "version", "status"]
)

WAITING_REQUESTS = Gauge(
    "fovea_waiting_requests", "Requests that wait for the first replica of a service on demand.", ["service"]
)
