"""Prometheus metrics of llm-longctx's trained mixers: landmark blocks, Titans states, routing clusters, cache bytes.

`shared.telemetry` has the metrics of every service. Knows prometheus_client; each metric has the label `model` first.
"""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

_RETRIEVED = Counter("landmark_blocks_retrieved_total", "Blocks fetched by queries.", ["model"])
_MOVED = Counter("landmark_bytes_moved_total", "Bytes of blocks fetched from where they wait.", ["model"])
RESIDENT_BLOCKS = Gauge("landmark_blocks_resident", "Blocks of documents that are kept.", ["model"])
DOCUMENTS = Counter(
    "landmark_documents_total",
    "Documents stored or asked about: blocks were local, fetched, or are read.",
    ["model", "blocks"],
)
UNSHARED_BLOCKS = Counter(
    "landmark_blocks_unshared_total",
    "Blocks that replicas can't share: too_large, invalid when fetched, or away.",
    ["model", "reason"],
)
_STATE = Gauge("titans_state_bytes", "Bytes of the last session state that was written.", ["model"])
NONFINITE_STATES = Counter("titans_nonfinite_total", "States that were not finite, and were dropped.", ["model"])
ROLLBACKS = Counter("titans_rollbacks_total", "Sessions that went back to an earlier version.", ["model"])
WRITE_CONFLICTS = Counter("titans_lock_conflicts_total", "Writes that came second.", ["model"])
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


def count_fetched_blocks(model: str, blocks: int, moved_bytes: int) -> None:
    """Count the blocks that a request fetched, and the bytes that were moved for them."""
    _RETRIEVED.labels(model).inc(blocks)
    _MOVED.labels(model).inc(moved_bytes)


def observe_titans_request(model: str, state_bytes: int, surprise: float | None) -> None:
    """Observe the size of the state that a request left, and how surprising its tokens were."""
    _STATE.labels(model).set(state_bytes)
    if surprise is not None:
        _SURPRISE.labels(model).observe(surprise)


def set_mixer_state_bytes(model: str, by_variant: Mapping[str, int]) -> None:
    """Set the bytes that the layers of each variant remember."""
    for variant, held in by_variant.items():
        _MIXER.labels(model, variant).set(held)


def set_cluster_occupancy(model: str, least: int, most: int, alone: float) -> None:
    """Set how evenly clusters are filled, and the share of tokens that are alone in theirs."""
    _OCCUPANCY.labels(model, "min").set(least)
    _OCCUPANCY.labels(model, "max").set(most)
    _ALONE.labels(model).set(alone)
