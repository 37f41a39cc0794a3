"""Which models this service serves: those of its room, or the one that the settings name by its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from services.llm_longctx.serving.decoder_model import LanguageModel
from shared.registry import Card, Paper, Servable, servables

__all__ = ["chosen", "model_at"]


def chosen(wanted: str) -> Mapping[str, type[Servable[Any, Any]]]:
    """Models to serve for the setting `llm_model`.

    Args:
        wanted: The beginning of a served name, or the path of a Hugging Face folder or GGUF file.

    Returns:
        Name → class. A path that leads nowhere is served, too, and says so when it is loaded.
    """
    known = servables("llm-longctx")
    if any(name.startswith(wanted) for name in known):
        return known
    model = model_at(Path(wanted))
    return {model.card.name: model}


def model_at(path: Path) -> type[LanguageModel]:
    """A Servable for the model in a folder or GGUF file, named after it."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.removesuffix(".gguf").lower()).strip("-._") or "local"

    class LocalModel(LanguageModel):
        """A model that the owner of this machine brought."""

        card: ClassVar[Card] = Card(
            name=name,
            task="chat",
            summary=f"The language model in {path.name}, brought by the owner of this machine.",
            paper=Paper(title="See the model's own documentation", venue="none", year=2026),
            licence="The model's own; see its documentation.",
            example={"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0},
        )

        @classmethod
        def source(cls) -> Path:
            """The path that the settings name."""
            return path

    return LocalModel
