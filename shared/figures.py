"""Metrics of single rooms, under the names of their papers: landmark, Titans, routing, deconstructed mixers, planner.

Beside `telemetry`, which has those of every service. Knows prometheus_client; callers say plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "landmark",
    "landmark_document",
    "landmark_resident",
    "landmark_unshared",
    "lock_conflict",
    "mixer_state",
    "nonfinite",
    "plan",
    "rolled_back",
    "routing",
    "titans",
]

_RETRIEVED = Counter("landmark_blocks_retrieved_total", "Blocks fetched by queries.", ["model"])
_MOVED = Counter("landmark_bytes_moved_total", "Bytes of blocks fetched from where they wait.", ["model"])
_RESIDENT = Gauge("landmark_blocks_resident", "Blocks of documents that are kept.", ["model"])
_DOCUMENTS = Counter(
    "landmark_documents_total",
    "Documents stored or asked about: blocks were local, fetched, or are read.",
    ["model", "blocks"],
)
_UNSHARED = Counter(
    "landmark_blocks_unshared_total",
    "Blocks that replicas can't share: too_large, invalid when fetched, or away.",
    ["model", "reason"],
)
_STATE = Gauge("titans_state_bytes", "Bytes of the last session state that was written.", ["model"])
_NONFINITE = Counter("titans_nonfinite_total", "States that were not finite, and were dropped.", ["model"])
_ROLLBACKS = Counter("titans_rollbacks_total", "Sessions that went back to an earlier version.", ["model"])
_CONFLICTS = Counter("titans_lock_conflicts_total", "Writes that came second.", ["model"])
_SURPRISE = Histogram(
    "titans_surprise",
    "Mean surprise of a request's tokens.",
    ["model"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
_MIXER = Gauge(
    "mixer_state_bytes", "Bytes that layers of a mixer remembered of the last request.", ["model", "variant"]
)
_OCCUPANCY = Gauge("routing_cluster_occupancy", "Tokens in a cluster, last request.", ["model", "bound"])
_ALONE = Gauge("routing_alone_ratio", "Share of tokens that are alone in their cluster, last request.", ["model"])
_CERTIFIED = Counter("plan_certified_total", "Plans that were certified.", ["task", "solver"])
_GAP = Histogram("plan_gap", "Optimality gap of tours.", ["task"], buckets=(0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
_FALLBACK = Counter("plan_fallback_total", "Plans that another solver answered than the one asked for.", ["reason"])


def landmark(model: str, retrieved: int, moved: int) -> None:
    """An answer fetched so many blocks, and moved so many bytes."""
    _RETRIEVED.labels(model).inc(retrieved)
    _MOVED.labels(model).inc(moved)


def landmark_resident(model: str, blocks: int) -> None:
    """So many blocks of documents are kept now."""
    _RESIDENT.labels(model).set(blocks)


def landmark_document(model: str, blocks: str) -> None:
    """A document was wanted whose blocks were `local`, could be `fetched`, or have to be `read`."""
    _DOCUMENTS.labels(model, blocks).inc()


def landmark_unshared(model: str, reason: str) -> None:
    """A document's blocks were `too_large` to be kept for others, `invalid` as they were kept, or Redis was `away`."""
    _UNSHARED.labels(model, reason).inc()


def titans(model: str, state_bytes: int, surprise: float | None) -> None:
    """A request left a state of this size, and its tokens were so surprising."""
    _STATE.labels(model).set(state_bytes)
    if surprise is not None:
        _SURPRISE.labels(model).observe(surprise)


def nonfinite(model: str) -> None:
    """A state was not finite."""
    _NONFINITE.labels(model).inc()


def rolled_back(model: str) -> None:
    """A session is at an earlier version again."""
    _ROLLBACKS.labels(model).inc()


def lock_conflict(model: str) -> None:
    """Somebody else wrote first."""
    _CONFLICTS.labels(model).inc()


def mixer_state(model: str, variants: Mapping[str, int]) -> None:
    """Bytes that the layers of each variant remember."""
    for variant, held in variants.items():
        _MIXER.labels(model, variant).set(held)


def routing(model: str, least: int, most: int, alone: float) -> None:
    """How evenly clusters were filled, and the share of tokens that had nobody to look at."""
    _OCCUPANCY.labels(model, "min").set(least)
    _OCCUPANCY.labels(model, "max").set(most)
    _ALONE.labels(model).set(alone)


def plan(task: str, solver: str, *, certified: bool, gap: float | None, fallback: str | None) -> None:
    """A plan left: who solved it, how far it may be from the best, and why somebody else was asked first."""
    if certified:
        _CERTIFIED.labels(task, solver).inc()
    if gap is not None:
        _GAP.labels(task).observe(gap)
    if fallback is not None:
        _FALLBACK.labels(fallback).inc()
