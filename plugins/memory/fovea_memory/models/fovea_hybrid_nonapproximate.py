"""`fovea-hybrid-nonapproximate`: every other layer scores by the key alone, with a state of constant size."""

from collections import Counter
from typing import Any, ClassVar

from fovea_memory import metrics
from fovea_memory.adapters.session import StatelessSessionAdapter
from fovea_memory.mixers.deconstructed.mixers import cache_bytes
from fovea_memory.mixers.deconstructed.networks import DeconstructedSession
from fovea_memory.session_model import LoadedNetwork, SessionModel
from fovea_memory.toy_tokenizers import ByteTokenizer
from shared.registry import Card, Limits, Metric, Paper
from shared.registry.weights import NetworkSpec

_SIZES: dict[str, Any] = {
    "vocab": 256, "width": 96, "layers": 4, "heads": 4, "context": 256, "mixer": "nonapproximate", "layout": "hybrid",
}  # fmt: skip

_ITEM = 4
"""Bytes of a number: it runs in float32."""

_MEASURED = {
    "bits_per_byte": "48 held-out windows of 256 bytes",
    "bits_skip": "The same without the layers of the variant",
    "state_bytes": "Memory of a session of 256 bytes",
}


class HybridNonapproximate(SessionModel):
    """A byte model in which half of the layers have no token-to-token scores."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="deconstructed-lm", config=_SIZES)
    card: ClassVar[Card] = Card(
        name="fovea-hybrid-nonapproximate",
        task="chat",
        summary="A byte model in which every other layer weighs tokens by their keys alone.",
        paper=Paper.on_arxiv(
            "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
            2025,
            "2510.11602",
        ),
        licence="Code and demo weights: Apache-2.0; trained on text that ships with Python (PSF licence).",
        metrics=tuple(Metric(name=name, ours=None, data=data) for name, data in _MEASURED.items()),
        limits=Limits(max_tokens=_SIZES["context"]),
        notes=(
            "It goes on with text like Python's documentation, byte by byte, and understands nothing of it.",
            "Messages are joined by a line break; there is no chat template.",
            "No ONNX graph: recurrences and caches grow between steps.",
        ),
        example={"messages": [{"role": "user", "content": "def main():\n    "}], "max_tokens": 16, "temperature": 0},
    )

    @classmethod
    def make_adapter(cls, loaded: LoadedNetwork, threads: int) -> StatelessSessionAdapter:
        net: Any = loaded.net
        width, layers = net.embed.embedding_dim, len(net.mixers)
        return cls.build_adapter(
            StatelessSessionAdapter,
            loaded,
            threads,
            ByteTokenizer(),
            net.context,
            "hybrid",
            dense_token_bytes=2 * _ITEM * layers * width,
            observe=lambda session: _observe_bytes(cls.card.name, session),
        )

    def details(self) -> dict[str, Any]:
        net = self.adapter.net
        mixers, context, width, heads = net.mixers, net.context, net.embed.embedding_dim, net.heads
        held = [cache_bytes(mixer, 1, context, width, heads, _ITEM) for mixer in mixers]
        dense = cache_bytes("standard", 1, context, width, heads, _ITEM)
        return {
            **super().details(),
            "layout": list(mixers),
            "context": context,
            "cache_bytes": held,
            "cache_bytes_per_token": [each / context for each in held],
            "cache_bytes_per_token_total": sum(held) / context,
            "dense_twin": {
                "cache_bytes": [dense] * len(mixers),
                "cache_bytes_per_token_total": dense * len(mixers) / context,
            },
        }


def _observe_bytes(model: str, session: DeconstructedSession) -> None:
    """Report what the layers of each variant cache."""
    held = Counter[str]()
    for variant, nbytes in zip(session.net.mixers, session.nbytes, strict=True):
        held[variant] += nbytes
    for mixer, total in held.items():
        metrics.MIXER_BYTES.labels(model, mixer).set(total)
