"""A language model as a Servable: chat in, chat out, and the other deeds of the protocol on the same weights.

Whatever the model is, it speaks through its voice. Knows the protocol's requests; knows no HTTP and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from services.llm_longctx.serving import chat, completions
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.request_state import PreparedRequest, Remembered
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
from shared.errors import FoveaError, InvalidOption
from shared.registry import CallContext, Servable

__all__ = ["TextModel"]


class TextModel(Servable[ChatRequest, ChatCompletion]):
    """Serves what its voice says; subclasses load it."""

    In = ChatRequest
    Out = ChatCompletion
    mode = "stream"

    speaker: TextModelAdapter
    remembers: ClassVar[bool] = False
    """Whether it takes sessions."""
    cites: ClassVar[bool] = False
    """Whether it takes documents."""

    def predict(self, batch: Sequence[ChatRequest], run: CallContext) -> list[ChatCompletion | FoveaError]:
        """Answer conversations, together."""
        begun: list[Iterator[ChatChunk] | FoveaError] = []
        for request in batch:
            try:
                begun.append(chat.chunks(self.speaker, request, run))
            except FoveaError as error:
                begun.append(error)
        return [one if isinstance(one, FoveaError) else chat.gather(one) for one in begun]

    def stream(self, request: BaseModel, run: CallContext) -> Iterator[BaseModel]:
        """Chunks of a chat or a completion; the usage comes last where it was asked for or nothing is streamed."""
        asked, brought = (request.asked, request.brought) if isinstance(request, PreparedRequest) else (request, None)
        pieces: Iterator[Any]
        if isinstance(asked, ChatRequest):
            pieces = chat.chunks(self.speaker, asked, run, brought)
        elif isinstance(asked, CompletionRequest):
            pieces = completions.chunks(self.speaker, asked, run, brought)
        else:
            message = f"{type(asked).__name__} is no request of a language model"
            raise TypeError(message)
        if isinstance(brought, Remembered):
            pieces = _committed(pieces, asked, brought)
        return pieces if _wants_usage(asked) else _without_usage(pieces)

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

    def details(self) -> dict[str, Any]:
        """Whether it takes sessions and documents."""
        return {"remembers": self.remembers, "cites": self.cites}

    def close(self) -> None:
        """Stop the engine."""
        self.speaker.scheduler.close()


def _committed(pieces: Iterator[Any], asked: BaseModel, session: Remembered) -> Iterator[Any]:
    """The same pieces; what was learnt is stored before the last ones are let go, so that they say what is true."""
    seen, held = [], []
    for piece in pieces:
        seen.append(piece)
        if piece.longctx is not None:
            held.append(piece)
        else:
            yield piece
    gather: Any = chat.gather if isinstance(asked, ChatRequest) else completions.gather
    session.commit(session, gather(seen).model_dump_json())
    yield from held


def _wants_usage(request: GenerationOptions) -> bool:
    return not request.stream or (request.stream_options is not None and request.stream_options.include_usage)


def _without_usage(pieces: Iterator[BaseModel]) -> Iterator[BaseModel]:
    for piece in pieces:
        if getattr(piece, "choices", None):
            yield piece
