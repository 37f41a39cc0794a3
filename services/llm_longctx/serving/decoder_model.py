"""A decoder as a Servable: from a model's files to an engine and its adapter.

Subclasses say which files; `text_model` answers requests. Knows nothing about HTTP.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.text_model import TextModel
from services.llm_longctx.serving.weight_format import load_weights
from shared.api.text import ChatRequest, CompletionRequest
from shared.lm.head_plan_store import HeadPlanStore
from shared.lm.tokenizer import Tokenizer
from shared.registry import LoadContext

__all__ = ["DecoderModel"]

_BUNDLED_PLANS = Path(__file__).parents[1] / "weights"
"""Head plans that come with the package."""

_PREFIX_BLOCK = 64
"""Tokens by which cached prefixes of served prompts grow."""


class DecoderModel(TextModel):
    """Serves one decoder with its tokenizer. Subclasses add a card and say where the files are.

    `LoadContext.options["llm_weights"]` is the format of its weights; see `serving.weight_format`.
    """

    adapter: DecoderAdapter

    def __init__(self, adapter: DecoderAdapter) -> None:
        """Serve a loaded decoder."""
        self.adapter = adapter

    @classmethod
    @abstractmethod
    def source(cls) -> Path:
        """A Hugging Face folder or a GGUF file."""

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Read the files (a GGUF is unpacked into the cache the first time) and start the engine.

        Raises:
            NotFound: The files are not there.
            FoveaError: They are no model that the decoder has a form for.
        """
        weights = load_weights(cls.source(), place.cache, place.options.get("llm_weights", "auto"), place.device)
        model, digest, folder = weights.model, weights.sha256, weights.folder
        tokenizer, config = Tokenizer.from_folder(folder), model.config
        engine = Engine(
            model,
            weights_sha256=digest,
            packed=weights.packed,
            threads=place.threads,
            monitor=_monitor(place),
            prefix_block=_PREFIX_BLOCK,
        )
        engine.scheduler.start()
        fingerprint = f"fp_{digest[:16]}_{weights.format}"
        plans = HeadPlanStore(cls.card.name, _BUNDLED_PLANS, place.weights)
        limits = config.positions, config.vocab
        return cls(DecoderAdapter(cls.card.name, fingerprint, tokenizer, engine.scheduler, *limits, engine, plans))

    def details(self) -> dict[str, Any]:
        """As every text model, and that requests may choose an attention method."""
        return {**super().details(), "methods": True}

    def example(self) -> ChatRequest:
        """The Card's conversation, or for a model without template a text to go on with."""
        if self.adapter.tokenizer.chat_template is None:
            return CompletionRequest(prompt="Once upon a time", max_tokens=8)  # type: ignore[return-value]  # `stream` takes both
        return super().example()


def _monitor(place: LoadContext) -> FidelityMonitor:
    """The fidelity monitor with the platform's sample rate and floor; by default it samples nothing."""
    return FidelityMonitor(
        float(place.options.get("llm_fidelity_sample_rate", 0)),
        float(place.options.get("llm_fidelity_min_agreement", 0)),
    )
