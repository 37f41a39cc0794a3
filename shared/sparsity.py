"""SparsityClaim: what a model or method must state before it may call itself sparse, and the lint that reads it.

The rules follow the axes of *Ten Lessons We Have Learned in the New "Sparseland"* (2023): what is sparse, when, how it
was counted, and against which dense baseline it was measured. Pure data: a Card can hold a claim without torch.

    S0 the record validates              S6 N:M runs on a sparse kernel, or is "masked dense"
    S1 kind and granularity              S7 quality against three dense baselines, 3 seeds or an interval
    S2 when, path, mask                  S8 attention says which phases are sparse, headlines respect it
    S3 layers counted in the artefact    S9 attention states memory and KV bytes
    S4 speed measured, not derived       S10 attention shows retrieval at 3 depths or more
    S5 unstructured states its bytes
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

OPEN = frozenset({"S7", "S10"})
"""Rules that a claim without a headline may break in the open: they need studies, which take longer than code."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pattern(_Record):
    """The shape of the zeros: N of M, a block, or how many tokens each query keeps."""

    n: int | None = None
    m: int | None = None
    block: tuple[int, int] | None = None
    top_k: int | None = None


class Measured(_Record):
    """A timing against the best dense kernel on the same machine, in milliseconds."""

    speedup: float = Field(gt=0)
    device: str
    batch: int = Field(ge=1)
    sequence: int | None = None
    dtype: str
    kernel: str
    kernel_sparse: bool
    runs: int
    p50_ms: float = Field(gt=0)
    p95_ms: float = Field(gt=0)
    dense_kernel: str
    dense_p50_ms: float = Field(gt=0)
    peak_memory_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    offload_bytes_per_token: float | None = None


class Headline(_Record):
    """The number that a page shows large."""

    speedup: float
    source: Literal["measured", "theoretical"]
    scope: Literal["end-to-end", "prefill", "decode", "training"]


class Quality(_Record):
    """Quality of the sparse model, against dense models of equal parameters, equal compute and small size."""

    metric: str
    value: float
    dense_same_parameters: float | None = None
    dense_same_compute: float | None = None
    small_dense: float | None = None
    seeds: int = 1
    interval: tuple[float, float] | None = None


class Phases(_Record):
    """Which phases of an attention method are sparse."""

    prefill: Literal["sparse", "dense"]
    decode: Literal["sparse", "dense"]
    training: Literal["sparse", "dense"]


class Retrieval(_Record):
    """Long-range access by needle depth (0 start, 1 end): averages hide what was lost."""

    depths: list[float]
    score: float
    dense_score: float


class SparsityClaim(_Record):
    """One claim. Absent facts are null; the lint names those that are required."""

    model: str
    kind: Literal["weight", "activation", "attention"] | None = None
    granularity: Literal["unstructured", "n:m", "block", "channel", "head", "token-topk"] | None = None
    pattern: Pattern | None = None
    when: Literal["before", "during", "post"] | None = None
    path: Literal["dense-to-sparse", "sparse-to-sparse"] | None = None
    mask: Literal["static", "dynamic"] | None = None
    sparsity_global: float = Field(ge=0, le=1)
    sparsity_by_layer: dict[str, float] = Field(default_factory=dict)
    dense_layers: list[str] = Field(default_factory=list)
    counted_in: Literal["artefact", "config"]
    theoretical_flops_ratio: float = Field(gt=0, le=1, description="Sparse over dense.")
    measured: Measured | None = None
    headline: Headline | None = None
    value_bytes: int | None = None
    index_bytes: int | None = None
    nm_verified: bool | None = None
    quality: Quality | None = None
    phases: Phases | None = None
    retrieval: Retrieval | None = None


class Finding(_Record):
    """A broken rule and the sentence that says how."""

    rule: str
    message: str


def lint(claim: SparsityClaim | Mapping[str, Any]) -> list[Finding]:
    """All rules that a claim breaks, each once, in the order of the rules."""
    if not isinstance(claim, SparsityClaim):
        try:
            claim = SparsityClaim.model_validate(claim)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return [Finding(rule="S0", message=f"The record does not validate: {where}: {first['msg']}.")]
    found = ((rule, next(check(claim), None)) for rule, check in _RULES.items())
    return [Finding(rule=rule, message=message) for rule, message in found if message is not None]


def blocking(claim: SparsityClaim | Mapping[str, Any]) -> list[Finding]:
    """The findings with which a claim may not be published: all under a headline, else all but the open ones."""
    found = lint(claim)
    headline = claim.headline if isinstance(claim, SparsityClaim) else claim.get("headline")
    return [finding for finding in found if headline is not None or finding.rule not in OPEN]


def _what(c: SparsityClaim) -> Iterator[str]:
    pattern = c.pattern or Pattern()
    if c.kind is None or c.granularity is None:
        yield "Kind and granularity must be stated."
    if c.granularity == "token-topk" and (c.kind != "attention" or pattern.top_k is None):
        yield "Top-k over tokens is a kind of attention and needs `pattern.top_k`."
    if c.granularity == "n:m" and not (pattern.n is not None and pattern.m is not None and 0 < pattern.n < pattern.m):
        yield "N:M needs 0 < n < m."
    if c.granularity == "block" and pattern.block is None:
        yield "Block sparsity needs `pattern.block`."


def _when(c: SparsityClaim) -> Iterator[str]:
    if c.when is None or c.mask is None:
        yield "When it was made sparse and whether the mask is static must be stated."
    if c.kind == "weight" and c.path is None:
        yield "Sparse weights must say by which path they came to be."
    if c.path == "sparse-to-sparse" and c.when == "post":
        yield "Sparse-to-sparse training can't happen after training."


def _layers(c: SparsityClaim) -> Iterator[str]:
    ratios = c.sparsity_by_layer
    if not ratios:
        yield "No layers are listed."
        return
    if c.counted_in != "artefact":
        yield "Zeros must be counted in the artefact that is served, not in a configuration."
    if set(c.dense_layers) != {name for name, ratio in ratios.items() if ratio == 0}:
        yield "`dense_layers` must be exactly the layers with ratio 0."
    if any(not 0 <= ratio <= 1 for ratio in ratios.values()):
        yield "A layer's ratio lies outside 0..1."
    if not min(ratios.values()) - 1e-9 <= c.sparsity_global <= max(ratios.values()) + 1e-9:
        yield "The global ratio lies outside the range of the layers."


def _speed(c: SparsityClaim) -> Iterator[str]:
    m, h = c.measured, c.headline
    if m is not None:
        timed = m.dense_p50_ms / m.p50_ms
        if m.runs < 30:
            yield f"{m.runs} runs are too few; 30 are needed."
        if m.p95_ms < m.p50_ms:
            yield "The 95th percentile lies below the median."
        if abs(m.speedup - timed) > 0.02 * timed:
            yield f"The speedup {m.speedup:g} is not the ratio of the medians, {timed:.3g}."
    if h is not None and (h.source != "measured" or m is None or not h.speedup <= 1.01 * m.speedup):  # NaN, too
        yield "The headline quotes more than was measured."


def _bytes(c: SparsityClaim) -> Iterator[str]:
    unstructured = c.kind == "weight" and c.granularity == "unstructured"
    if unstructured and (c.measured is None or c.index_bytes is None or c.value_bytes is None):
        yield "Unstructured weights owe a measured speed (also below 1), value bytes and index bytes."


def _n_of_m(c: SparsityClaim) -> Iterator[str]:
    if c.granularity == "n:m" and not (c.nm_verified and c.measured is not None and c.measured.kernel_sparse):
        yield "N:M must be verified in the artefact and timed on a sparse kernel; without one it is masked dense."


def _quality(c: SparsityClaim) -> Iterator[str]:
    q = c.quality
    if q is None or None in (q.dense_same_parameters, q.dense_same_compute, q.small_dense):
        yield "Quality must stand against dense models of equal parameters, of equal compute, and a small one."
    elif q.seeds < 3 and q.interval is None:
        yield "Fewer than 3 seeds need an interval."


def _phases(c: SparsityClaim) -> Iterator[str]:
    if c.kind != "attention":
        return
    if c.phases is None:
        yield "Attention must say which of prefill, decode and training is sparse."
        return
    dense = {phase for phase, form in c.phases.model_dump().items() if form == "dense"}
    scope = c.headline.scope if c.headline else None
    if scope in dense or (scope == "end-to-end" and dense & {"prefill", "decode"}):
        yield f"The headline covers {scope}, part of which is dense."


def _memory(c: SparsityClaim) -> Iterator[str]:
    m = c.measured
    if c.kind != "attention" or m is None:
        return
    if None in (m.peak_memory_bytes, m.kv_bytes_per_token, m.offload_bytes_per_token):
        yield "Measured attention needs peak memory, KV bytes and offloaded bytes per token; 0 is a value."


def _retrieval(c: SparsityClaim) -> Iterator[str]:
    if c.kind == "attention" and (c.retrieval is None or len(set(c.retrieval.depths)) < 3):
        yield "Attention needs retrieval at three depths or more; averages hide lost long-range access."


_CHECKS = (_what, _when, _layers, _speed, _bytes, _n_of_m, _quality, _phases, _memory, _retrieval)
_RULES = {f"S{number}": check for number, check in enumerate(_CHECKS, 1)}
