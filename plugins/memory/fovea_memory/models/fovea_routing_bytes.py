"""`fovea-routing-bytes`: causal routing attention over bytes in half of the last layer's heads; others are local."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from fovea_memory import metrics
from fovea_memory.adapters.session import StatelessSessionAdapter
from fovea_memory.mixers.routing.networks import RoutingSession
from fovea_memory.session_model import LoadedNetwork, SessionModel
from fovea_memory.toy_tokenizers import ByteTokenizer
from shared.registry import Card, Limits, Metric, Paper
from shared.registry.sparsity_claims import build_claim, read_measurements
from shared.registry.weights import NetworkSpec
from shared.sparsity import Pattern, Phases

_SIZES: dict[str, Any] = {
    "vocab": 256, "width": 128, "layers": 4, "heads": 4, "local_heads": 2, "head_dim": 32, "window": 64,
    "local_window": 64, "context": 512, "mode": "causal", "shared": False, "first": 3,
}  # fmt: skip

_MEASURED = {
    "bits_teacher_forced": "Bits per byte of 48 held-out windows of 512 bytes, each window read at once",
    "bits_incremental": "Bits per byte of 8 of these windows, byte by byte",
    "bits_teacher_forced_same": "The same 8 windows, read at once",
    "occupancy_max": "Largest share of a window in one cluster",
}


class RoutingBytes(SessionModel):
    """A byte model whose tokens attend to their cluster."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="routing-lm", config=_SIZES)
    card: ClassVar[Card] = Card(
        name="fovea-routing-bytes",
        task="chat",
        summary="A byte model with causal routing attention, whose log-probabilities are real likelihoods.",
        paper=Paper.on_arxiv(
            "Efficient Content-Based Sparse Attention with Routing Transformers", 2021, "2003.05997", venue="TACL"
        ),
        licence="Code and demo weights: Apache-2.0; trained on text that ships with Python (PSF licence).",
        variants=("paper", "port", "causal"),
        variant="causal",
        metrics=tuple(Metric(name=name, ours=None, data=data) for name, data in _MEASURED.items()),
        limits=Limits(max_tokens=_SIZES["context"]),
        notes=(
            "It goes on with text like Python's documentation, byte by byte, and understands nothing of it.",
            "Messages are joined by a line break; there is no chat template.",
            "Half of the last layer's heads route, with keys of their own; all others are local.",
            "With queries as keys and routing in every layer it was 1.3 % worse than local heads after 800 steps.",
            "Only the causal mode is served: the released one looks ahead, so that its perplexity is not a likelihood.",
            "No ONNX graph: clusters keep rings of keys between steps.",
        ),
        sparsity=build_claim(
            "fovea-routing-bytes",
            read_measurements(Path(__file__).with_name("claims.json")).get("fovea-routing-bytes", {}),
            kind="attention",
            granularity="token-topk",
            pattern=Pattern(top_k=_SIZES["window"]),
            when="during",
            mask="dynamic",
            phases=Phases(prefill="sparse", decode="sparse", training="dense"),
        ),
        example={"messages": [{"role": "user", "content": "def main():\n    "}], "max_tokens": 16, "temperature": 0},
    )

    @classmethod
    def make_adapter(cls, loaded: LoadedNetwork, threads: int) -> StatelessSessionAdapter:
        net: Any = loaded.net
        width, layers = net.token_emb.embedding_dim, len(net.blocks)
        return cls.build_adapter(
            StatelessSessionAdapter,
            loaded,
            threads,
            ByteTokenizer(),
            net.context,
            "routing",
            dense_token_bytes=8 * layers * width,
            observe=lambda session: _observe_occupancy(cls.card.name, session),
        )


def _observe_occupancy(model: str, session: RoutingSession) -> None:
    """Report how the clusters were filled."""
    layers = [tokens for tokens in session.occupancy if tokens.numel()]
    if layers:
        filled = torch.stack(layers)
        alone = float((filled == 1).sum() / filled.sum())
        metrics.CLUSTER_OCCUPANCY.labels(model, "min").set(int(filled.min()))
        metrics.CLUSTER_OCCUPANCY.labels(model, "max").set(int(filled.max()))
        metrics.ALONE_RATIO.labels(model).set(alone)
