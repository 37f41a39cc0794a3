"""Prometheus metrics of llm-longctx's trained mixers: landmark blocks, Titans states, routing clusters, cache bytes.

`shared.telemetry` has the metrics of every service. Knows prometheus_client; each metric has the label `model` first.
"""

from prometheus_client import Counter, Gauge, Histogram

RETRIEVED_BLOCKS = Counter("landmark_blocks_retrieved_total", "Blocks fetched by queries.", ["model"])
MOVED_BYTES = Counter("landmark_bytes_moved_total", "Bytes of blocks fetched from where they wait.", ["model"])
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
STATE_BYTES = Gauge("titans_state_bytes", "Bytes of the last session state that was written.", ["model"])
NONFINITE_STATES = Counter("titans_nonfinite_total", "States that were not finite, and were dropped.", ["model"])
ROLLBACKS = Counter("titans_rollbacks_total", "Sessions that went back to an earlier version.", ["model"])
WRITE_CONFLICTS = Counter("titans_lock_conflicts_total", "Writes that came second.", ["model"])
SURPRISE = Histogram(
    "titans_surprise",
    "Mean surprise of a request's tokens.",
    ["model"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
MIXER_BYTES = Gauge(
    "mixer_state_bytes", "Bytes that layers of a mixer remembered of the last request.", ["model", "variant"]
)
CLUSTER_OCCUPANCY = Gauge("routing_cluster_occupancy", "Tokens in a cluster, last request.", ["model", "bound"])
ALONE_RATIO = Gauge("routing_alone_ratio", "Share of tokens that are alone in their cluster, last request.", ["model"])
