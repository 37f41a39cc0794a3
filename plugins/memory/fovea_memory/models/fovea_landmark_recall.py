"""`fovea-landmark-recall`: landmark attention small enough to watch, on key-value recall."""

from pathlib import Path
from typing import ClassVar

from fovea_memory.adapters.landmark import LandmarkAdapter
from fovea_memory.session_model import LoadedNetwork, SessionModel
from fovea_memory.toy_tokenizers import LANDMARK, RecallTokenizer
from shared.registry import Card, Limits, Metric, Paper
from shared.registry.sparsity_claims import build_claim, read_measurements
from shared.registry.weights import NetworkSpec
from shared.sparsity import Pattern, Phases

CONTEXT = 32_768
"""Tokens of one request: what it costs grows with them, what it understands does not end there."""

_SIZES = {"vocab": 42, "width": 64, "layers": 2, "heads": 4, "block": 8, "landmark_id": LANDMARK, "context": 72}

_TASK = "256 answers of synthetic key-value recall, chance 0.06"

_MEASURED = {
    "recall_64": f"{_TASK}, in the trained length, read at once",
    "recall_64_k2": f"{_TASK}, in the trained length, through the 2 best blocks",
    "recall_1024_k2": f"{_TASK}, at 16 times the trained length, through the 2 best blocks",
    "recall_1024_k2_mean_gate": f"{_TASK}, the same with blocks chosen by the mean of their keys",
    "kept_1024_k2": "recall_1024_k2 over recall_64, both synthetic",
    "cited_key_1024_k2": "Share of heads behind the first layer that fetched the block of the synthetic key asked for",
}


class LandmarkRecall(SessionModel):
    """A landmark GPT that finds pairs far behind what it was trained on, and says where it looked."""

    untrained: ClassVar[NetworkSpec] = NetworkSpec(name="landmark-gpt", config=_SIZES)
    takes: ClassVar[frozenset[str]] = frozenset({"document_id"})
    card: ClassVar[Card] = Card(
        name="fovea-landmark-recall",
        task="chat",
        summary="A demonstration of landmark attention: it remembers pairs of words, and cites the blocks it read.",
        paper=Paper.on_arxiv(
            "Landmark Attention: Random-Access Infinite Context Length for Transformers", 2023, "2305.16300"
        ),
        licence="Code and demo weights: Apache-2.0; trained on text made by a seed.",
        parameters=101_312,
        metrics=tuple(Metric(name=name, ours=None, data=data) for name, data in _MEASURED.items()),
        limits=Limits(max_tokens=CONTEXT),
        notes=(
            "It knows 41 words and one task: `… dog red … ? dog` is answered with `red`. It is not a chat model.",
            "Messages are joined by a space; there is no chat template.",
            "`longctx` takes blocks, selection, offload, capacity and cite; POST /v1/documents reads a text once.",
            "Citations leave out the first layer, where all landmarks have the same key.",
            "No ONNX graph: blocks are chosen while it reads, and its session grows with them.",
        ),
        sparsity=build_claim(
            "fovea-landmark-recall",
            read_measurements(Path(__file__).with_name("claims.json")).get("fovea-landmark-recall", {}),
            kind="attention",
            granularity="block",
            pattern=Pattern(block=(1, _SIZES["block"] + 1)),
            when="during",
            mask="dynamic",
            phases=Phases(prefill="sparse", decode="sparse", training="dense"),
        ),
        example={
            "messages": [
                {"role": "user", "content": "and the of cat red to in on dog blue at by the of to owl teal in on at"},
                {"role": "user", "content": "? dog"},
            ],
            "max_tokens": 1,
            "temperature": 0,
        },
    )

    @classmethod
    def make_adapter(cls, loaded: LoadedNetwork, threads: int) -> LandmarkAdapter:
        return cls.build_adapter(LandmarkAdapter, loaded, threads, RecallTokenizer(), CONTEXT, "landmark")
