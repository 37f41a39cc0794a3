"""A decoder as a Servable: from a model's files to an engine and its adapter.

Subclasses say which files; `text_model` answers requests. Knows nothing about HTTP.
"""

import gc
from abc import abstractmethod
from collections.abc import AsyncGenerator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ValidationError

from fovea.api.text import ChatRequest, CompletionRequest
from fovea.errors import InvalidOption, Malformed
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.generation_metrics import watch_pages, watch_scheduler
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.cache_dtype import read_cache_dtype
from services.llm_longctx.serving.embeddings import DecoderEmbedder
from services.llm_longctx.serving.parallel_processes import ParallelProcesses, load_shard, read_size
from services.llm_longctx.serving.text_model import TextModel
from services.llm_longctx.serving.weight_format import load_weights
from shared.engines.idle_memory import IDLE_SHRINKER
from shared.lm.head_plan_store import HeadPlanStore
from shared.lm.mapped_weights import release_clean_pages
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import read_json
from shared.registry import CallContext, LoadContext, ModelVariant, SamplingDefaults

_BUNDLED_PLANS = Path(__file__).parents[1] / "weights"
"""Head plans that come with the package."""

_PREFIX_BLOCK = 64
"""Tokens by which cached prefixes of served prompts grow."""

_HOST_BYTES = 2 * 2**30
_HOST_BATCH = 8

_DEVICE_SHARE = 0.8
"""Share of the memory that is free once the weights are there: activations, graphs and other services need some."""

_DEVICE_BATCH = 64
"""Sequences of a step on a GPU, which reads the weights once for all of them."""


class DecoderModel(TextModel):
    """Serves one decoder with its tokenizer. Subclasses add a card and say where the files are.

    `LoadContext.options["llm_weights"]` is the format of its weights (see `serving.weight_format`), and
    `["llm_kv_cache_dtype"]` that of older keys and values.
    """

    adapter: DecoderAdapter
    _others: ParallelProcesses | None = None

    def __init__(self, adapter: DecoderAdapter, folder: Path | None = None) -> None:
        """Serve a loaded decoder, whose weights may be mapped from `folder`; the Card names how it draws tokens."""
        self.adapter = adapter
        self._folder = folder
        self.card = self.card.model_copy(update={"sampling": adapter.sampling})  # type: ignore[misc]  # of this instance

    @classmethod
    @abstractmethod
    def source(cls) -> Path:
        """A Hugging Face folder or a GGUF file."""

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Read the files (a GGUF is unpacked into the cache the first time) and start the engine."""
        cache_bits = read_cache_dtype(place.options.get("llm_kv_cache_dtype", "auto"))
        shared_facts = {"prefix_block": _PREFIX_BLOCK, "cache_bits": cache_bits}
        others, wanted = None, place.options.get("llm_weights", "auto")
        if (size := read_size(place)) > 1:
            others = ParallelProcesses(cls.source(), place, size, shared_facts)
            weights = load_shard(cls.source(), place.cache, wanted, place.device, others.team)
        else:
            weights = load_weights(cls.source(), place.cache, wanted, place.device)
        kv_bytes, max_batch = choose_room(place.device, cache_bits)
        if others is not None:
            others.channel.send((kv_bytes, max_batch))
        model, digest, folder = weights.model, weights.sha256, weights.folder
        tokenizer = Tokenizer.from_folder(folder)
        given = place.options
        share, least = given.get("llm_fidelity_sample_rate", 0), given.get("llm_fidelity_min_agreement", 0)
        engine = Engine(
            model, weights_sha256=digest, packed=weights.packed, threads=place.threads, kv_bytes=kv_bytes,
            max_batch=max_batch, monitor=None if others else FidelityMonitor(float(share), float(least)),
            prefix_block=_PREFIX_BLOCK, cache_bits=cache_bits, team=None if others is None else others.team,
            channel=None if others is None else others.channel,
        )  # fmt: skip
        engine.scheduler.start()
        watch_scheduler(cls.card.name, engine.scheduler)
        watch_pages(cls.card.name, engine.pool)
        adapter = DecoderAdapter(
            cls.card.name, f"fp_{digest[:16]}_{weights.format}", tokenizer, engine.scheduler,
            *(model.config.positions, model.config.vocab, engine),
            HeadPlanStore(cls.card.name, _BUNDLED_PLANS, place.objects), place.objects,
            sampling=_read_sampling(cls.source()) or cls.card.sampling or SamplingDefaults(),
            takes_templates=place.options.get("llm_request_templates") == "True",
            lora_folder=cls._find_lora_folder(place),
        )  # fmt: skip
        made = cls(adapter, folder)
        made._others = others
        return made

    @classmethod
    def _find_lora_folder(cls, place: LoadContext) -> Path | None:
        """The server's folder of adapters, which are the default model's."""
        folder, default = place.options.get("llm_adapters"), place.options.get("llm_model", "")
        is_default = cls.card.name.startswith(default) or cls.source() == Path(default)
        return Path(folder) if folder and is_default else None

    def variants(self, tenant: str, name: str | None = None) -> list[ModelVariant]:
        store = self.adapter.of_tenant(tenant).loras
        found = store.list_all() if name is None else [one for one in [store.find(name)] if one is not None]
        mine = [one for one in found if one.parent == self.adapter.name]
        return [ModelVariant(one.id, int(one.created.timestamp())) for one in mine]

    def stream(self, request: BaseModel, run: CallContext) -> AsyncGenerator[BaseModel, None]:
        IDLE_SHRINKER.note_run(self)
        return super().stream(request, run)

    def shrink(self) -> None:
        """Give back the pages of mapped weights, which steps and prompts of few bits hardly read."""
        if self._folder is not None:
            release_clean_pages(self._folder)

    def close(self) -> None:
        super().close()
        if self._others is not None:
            self._others.stop()

    @cached_property
    def embedder(self) -> DecoderEmbedder:
        """Embeds texts by this decoder's states. Raises InvalidOption: Several processes hold it."""
        if self._others is not None:
            detail = "Embeddings need the whole model in one process, and several hold this one."
            raise InvalidOption(detail, hint="Set FOVEA_LLM_TENSOR_PARALLEL=1.")
        return DecoderEmbedder(self.adapter.engine.model, self.adapter.tokenizer)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "methods": True}

    def example(self) -> ChatRequest:
        if self.adapter.tokenizer.chat_template is None:
            return CompletionRequest(prompt="Once upon a time", max_tokens=8)  # type: ignore[return-value]  # `stream` takes both
        return super().example()


def choose_room(device: str, cache_bits: int) -> tuple[int, int]:
    """Bytes of keys and values, and sequences that are decoded at a time; asked once the weights are loaded.

    On a GPU, pages take their memory when an engine is made, those of few bits next to whole ones: each kind gets half.
    """
    if not device.startswith("cuda"):
        return _HOST_BYTES, _HOST_BATCH
    gc.collect()  # an engine that was closed may hold its pages still, in a circle
    torch.cuda.empty_cache()  # and torch its memory, which is free, too
    free, _ = torch.cuda.mem_get_info(device)
    return int(_DEVICE_SHARE * free) // (1 if cache_bits == 16 else 2), _DEVICE_BATCH


def _read_sampling(source: Path) -> SamplingDefaults | None:
    """The sampling fields of a folder's `generation_config.json`; None where there are none."""
    file = source / "generation_config.json"
    stated = read_json(file) if file.is_file() else {}
    known = {name: value for name in SamplingDefaults.model_fields if (value := stated.get(name)) is not None}
    try:
        return SamplingDefaults.model_validate(known) if known else None
    except ValidationError as error:
        raise Malformed(f"{file.name} of {source.name} can't be used: {error.errors()[0]['msg']}.") from error
