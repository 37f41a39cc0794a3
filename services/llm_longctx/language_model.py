"""A language model as a Servable: chat in, chat out, and the other deeds of the protocol on the same weights.

Knows how a model's files become something that speaks. Which files, says the subclass. Knows nothing about HTTP.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel

from services.llm_longctx import chat, completions
from services.llm_longctx.engine import Engine, Scheduler
from services.llm_longctx.engine.watch import Watch
from services.llm_longctx.speaker import Speaker
from shared.api.text import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    GenerationOptions,
    Tokenized,
    TokenizeRequest,
)
from shared.errors import FoveaError, InvalidOption, NotFound, UnsupportedMedia
from shared.lm.gguf_file import unpack
from shared.lm.plan_folders import PlanFolders
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder, weights_digest
from shared.registry import Place, Run, Servable

__all__ = ["LanguageModel"]

_SHIPPED = Path(__file__).parent / "weights"
"""Where head plans lie that come with the package."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LanguageModel(Servable[ChatRequest, ChatCompletion]):
    """Serves one decoder with its tokenizer. Subclasses add a card and say where the files are.

    `Place.options["llm_dtype"]` is `float32` (default) or `bfloat16`.
    """

    In = ChatRequest
    Out = ChatCompletion
    mode = "stream"

    def __init__(self, speaker: Speaker) -> None:
        """Serve what is loaded already."""
        self.speaker = speaker

    @classmethod
    @abstractmethod
    def source(cls) -> Path:
        """A Hugging Face folder or a GGUF file."""

    @classmethod
    def load(cls, place: Place) -> Self:
        """Read the files (a GGUF is unpacked into the cache the first time) and start the engine.

        Raises:
            NotFound: The files are not there.
            FoveaError: They are no model that the decoder has a form for.
        """
        named = place.options.get("llm_dtype", "float32")
        dtype = _DTYPES.get(named)
        if dtype is None:
            detail = f"Language models run in {' or '.join(_DTYPES)}, not in {named}."
            raise InvalidOption(detail, field="llm_dtype")
        folder = _folder(cls.source(), place, dtype)
        model, tokenizer = load_decoder(folder, dtype, place.device), Tokenizer.from_folder(folder)
        digest, facts = weights_digest(folder), model.config
        scheduler = Scheduler(Engine(model, weights_sha256=digest), threads=place.threads, watch=_watch(place))
        scheduler.start()
        fingerprint = f"fp_{digest[:16]}_{named}"
        plans = PlanFolders(cls.card.name, _SHIPPED, place.weights)
        return cls(Speaker(cls.card.name, fingerprint, tokenizer, scheduler, facts.positions, facts.vocab, plans))

    def predict(self, batch: Sequence[ChatRequest], run: Run) -> list[ChatCompletion | FoveaError]:
        """Answer conversations, together."""
        begun: list[Iterator[ChatChunk] | FoveaError] = []
        for request in batch:
            try:
                begun.append(chat.chunks(self.speaker, request, run))
            except FoveaError as error:
                begun.append(error)
        return [one if isinstance(one, FoveaError) else chat.gather(one) for one in begun]

    def stream(self, request: BaseModel, run: Run) -> Iterator[BaseModel]:
        """Chunks of a chat or a completion; the usage comes last where it was asked for or nothing is streamed."""
        pieces: Iterator[BaseModel]
        if isinstance(request, ChatRequest):
            pieces = chat.chunks(self.speaker, request, run)
        elif isinstance(request, CompletionRequest):
            pieces = completions.chunks(self.speaker, request, run)
        else:
            message = f"{type(request).__name__} is no request of a language model"
            raise TypeError(message)
        return pieces if _wants_usage(request) else _without_usage(pieces)

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Tokens of a text or of a conversation under the template.

        Raises:
            InvalidOption: Neither or both were given, or the template refuses.
            ContextLengthExceeded: The text is longer than any prompt may be.
        """
        if (request.prompt is None) == (request.messages is None):
            detail = "Give either prompt or messages."
            raise InvalidOption(detail, field="prompt")
        if request.messages is not None:
            text = self.speaker.dialogue(request.messages, add_generation_prompt=request.add_generation_prompt)
            ids = self.speaker.read(text, "messages", special=False)
        else:
            text = request.prompt or ""
            ids = self.speaker.read(text, "prompt", special=request.add_special_tokens)
        return Tokenized(tokens=ids, count=len(ids), prompt=text, max_model_len=self.speaker.context)

    def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        """Text of tokens, special ones as their names.

        Raises:
            InvalidOption: An id that the model does not know.
        """
        if any(token >= self.speaker.vocab for token in request.tokens):
            detail = f"tokens holds {max(request.tokens)}; this model's ids are below {self.speaker.vocab}."
            raise InvalidOption(detail, field="tokens")
        return Detokenized(prompt=self.speaker.tokenizer.decode(request.tokens))

    def example(self) -> ChatRequest:
        """The Card's conversation, or for a model without template a text to go on with."""
        if self.speaker.tokenizer.chat_template is None:
            return CompletionRequest(prompt="Once upon a time", max_tokens=8)  # type: ignore[return-value]  # `stream` takes both
        return super().example()

    def close(self) -> None:
        """Stop the engine."""
        self.speaker.scheduler.close()


def _watch(place: Place) -> Watch:
    """How answers are watched, as the platform says; by default not at all."""
    return Watch(float(place.options.get("llm_watch", 0)), float(place.options.get("llm_floor", 0)))


def _folder(source: Path, place: Place, dtype: torch.dtype) -> Path:
    if source.is_dir():
        return source
    if not source.exists():
        detail = f"There is no model at {source.name}."
        raise NotFound(detail, hint="FOVEA_LLM_MODEL names a served model, a Hugging Face folder or a GGUF file.")
    if source.suffix != ".gguf":
        detail = f"{source.name} is neither a Hugging Face folder nor a GGUF file."
        raise UnsupportedMedia(detail, hint="Convert it to a folder with safetensors.")
    return unpack(source, place.cache, dtype)


def _wants_usage(request: GenerationOptions) -> bool:
    return not request.stream or (request.stream_options is not None and request.stream_options.include_usage)


def _without_usage(pieces: Iterator[BaseModel]) -> Iterator[BaseModel]:
    for piece in pieces:
        if getattr(piece, "choices", None):
            yield piece
