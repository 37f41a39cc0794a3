"""`fovea-titans-*`: a memory that learns while it reads, in four layouts, on key-value recall."""

from typing import Any, ClassVar

from fovea_memory.adapters.titans import TitansAdapter
from fovea_memory.session_model import LoadedNetwork, SessionModel
from fovea_memory.toy_tokenizers import LANDMARK, RecallTokenizer
from shared.registry import Card, Limits, Metric, Paper
from shared.registry.weights import NetworkSpec

CONTEXT = 32_768
"""Tokens of one request; a session may read any number of them."""

_SIZES: dict[str, Any] = {
    "vocab": 42, "width": 64, "layers": 2, "heads": 4, "segment": 32, "window": 32, "persistent": 4, "depth": 1,
    "refresh": 16,
}  # fmt: skip

_NOTES = (
    "It knows 41 words and one task: `… dog red … ? dog` is answered with `red`. It is not a chat model.",
    "Messages are joined by a space; there is no chat template.",
    "With session_id it goes on with what a session remembers: constant size, versions, one writer at a time.",
    "No ONNX graph: its weights change while it reads.",
)

_TASK = "256 answers of synthetic key-value recall, chance 0.06, read as one stream of"
_LENGTHS = (64, 128, 256, 512, 1024, 2048)


def _card(layout: str, summary: str) -> Card:
    return Card(
        name=f"fovea-titans-{layout}",
        task="chat",
        summary=summary,
        paper=Paper.on_arxiv("Titans: Learning to Memorize at Test Time", 2024, "2501.00663"),
        licence="Code and demo weights: Apache-2.0; trained on text made by a seed.",
        variants=("mac", "mag", "mal", "lmm"),
        variant=layout,
        metrics=tuple(Metric(name=f"recall_{n}", ours=None, data=f"{_TASK} {n} tokens") for n in _LENGTHS),
        limits=Limits(max_tokens=CONTEXT),
        notes=_NOTES,
        example={
            "messages": [{"role": "user", "content": "and the of cat red to in on dog blue at by the of ? dog"}],
            "max_tokens": 1,
            "temperature": 0,
        },
    )


class _Titans(SessionModel):
    """One layout."""

    takes: ClassVar[frozenset[str]] = frozenset({"session_id"})

    @classmethod
    def make_adapter(cls, loaded: LoadedNetwork, threads: int) -> TitansAdapter:
        return cls.build_adapter(
            TitansAdapter,
            loaded,
            threads,
            RecallTokenizer(),
            CONTEXT,
            f"titans-{cls.card.variant}",
            muted=(LANDMARK,),
            dense_token_bytes=8 * _SIZES["layers"] * _SIZES["width"],
        )


class TitansMAC(_Titans):
    """Memory as context."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="titans-mac", config=_SIZES)
    card: ClassVar[Card] = _card("mac", "A memory as context: segments attend to what it knew when they began.")


class TitansMAG(_Titans):
    """Memory as gate."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="titans-mag", config=_SIZES)
    card: ClassVar[Card] = _card("mag", "A memory as a gate on a sliding window.")


class TitansMAL(_Titans):
    """Memory as layer."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="titans-mal", config=_SIZES)
    card: ClassVar[Card] = _card("mal", "A memory as a layer below a sliding window.")


class TitansLMM(_Titans):
    """Memory alone."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="titans-lmm", config=_SIZES)
    card: ClassVar[Card] = _card("lmm", "A memory alone, without attention.")
