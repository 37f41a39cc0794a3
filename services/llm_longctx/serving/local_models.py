"""Model selection: the models of the `models` folder, or the one whose files the settings name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from services.llm_longctx.serving.decoder_model import DecoderModel
from shared.registry import Card, Paper, Servable, servables


def select_models(name: str) -> Mapping[str, type[Servable[Any, Any]]]:
    """The models to serve for the setting `llm_model`.

    Args:
        name: The beginning of a served name, or the path of a Hugging Face folder or GGUF file.

    Returns:
        Name → class. A path that leads nowhere is served, too, and fails with a message when it is loaded.
    """
    known = servables("llm-longctx")
    if any(model.startswith(name) for model in known):
        return known
    model = make_local_model(Path(name))
    return {model.card.name: model}


def make_local_model(path: Path) -> type[DecoderModel]:
    """A Servable class for the model in a folder or GGUF file, named after it."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.removesuffix(".gguf").lower()).strip("-._") or "local"

    class LocalModel(DecoderModel):
        """A model from files of this machine's owner."""

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
            return path

    return LocalModel
