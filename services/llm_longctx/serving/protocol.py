"""Completion protocol of OpenAI's API: how a request becomes chunks, and how chunks become one answer.

What chat and text completion share: stamps, the chunk held back for the extra payload, and the usage at the end.
Subclasses know the chunks of theirs. Knows nothing about HTTP or the engine.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar
from uuid import uuid4

from services.llm_longctx.serving.adapters.base import TextModelAdapter, build_usage
from services.llm_longctx.serving.generation import Generation, OutputChunk
from services.llm_longctx.serving.generation_span import GenerationSpan
from services.llm_longctx.serving.request_state import RequestState
from services.llm_longctx.serving.steering.admission import admit_taps
from services.llm_longctx.serving.steering.capture_writer import CaptureWriter
from shared.api.interventions import Captured
from shared.api.text import ChatChunk, ChatCompletion, ChatRequest, Completion, CompletionRequest
from shared.lm.tokenizer import Tokenizer
from shared.registry import CallContext

RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)
ChunkT = TypeVar("ChunkT", ChatChunk, Completion)
AnswerT = TypeVar("AnswerT", ChatCompletion, Completion)


class CompletionProtocol(ABC, Generic[RequestT, ChunkT, AnswerT]):
    """One of the two protocols: its requests, its chunks and its whole answers.

    Class attributes:
        id_prefix: What ids of answers begin with.
        object_name: The `object` of a chunk.
        operation: What OpenTelemetry's conventions call it.
    """

    id_prefix: ClassVar[str]
    object_name: ClassVar[str]
    operation: ClassVar[str]
    chunk_type: type[ChunkT]

    def stream(
        self, adapter: TextModelAdapter, request: RequestT, run: CallContext, state: RequestState | None = None
    ) -> Iterator[ChunkT]:
        """Begin to answer; the last chunk has the usage and no choices.

        Raises:
            InvalidOption: An option that is not served.
            ContextLengthExceeded: A prompt does not fit the context.
            QueueFull: Too many requests wait.
            PermissionDenied: The caller's key does not allow to look inside the model.
        """
        admit_taps(request, run)
        observed = GenerationSpan(self.operation, adapter.name, request)
        generation = observed.begin(lambda: self.begin(adapter, request, run, state))
        return self._stream(adapter, generation, observed, has_logprobs=self.wants_logprobs(request))

    @abstractmethod
    def begin(
        self, adapter: TextModelAdapter, request: RequestT, run: CallContext, state: RequestState | None
    ) -> Generation:
        """Check a request and hand it to the engine; raises as `stream`."""

    @abstractmethod
    def wants_logprobs(self, request: RequestT) -> bool:
        """Whether the request asks for log-probabilities."""

    @abstractmethod
    def to_choices(
        self,
        piece: OutputChunk,
        tokenizer: Tokenizer,
        *,
        is_first: bool,
        has_logprobs: bool,
        captured: Sequence[Captured] = (),
    ) -> Iterable[Any]:
        """Choices of the chunks that carry one piece of an answer; `is_first` for the first piece of it."""

    @abstractmethod
    def gather(self, chunks: Iterable[ChunkT]) -> AnswerT:
        """Join all chunks of an answer, the one with the usage included."""

    @abstractmethod
    def replay(self, answer: str) -> list[ChunkT]:
        """The chunks of a whole answer (JSON) that was given before, the usage last."""

    def _stream(
        self, adapter: TextModelAdapter, generation: Generation, observed: GenerationSpan, *, has_logprobs: bool
    ) -> Iterator[ChunkT]:
        try:
            yield from self._build_chunks(adapter, generation, observed, has_logprobs=has_logprobs)
        finally:
            observed.end()

    def _build_chunks(
        self, adapter: TextModelAdapter, generation: Generation, observed: GenerationSpan, *, has_logprobs: bool
    ) -> Iterator[ChunkT]:
        stamp: dict[str, Any] = {
            "id": f"{self.id_prefix}-{uuid4().hex}",
            "object": self.object_name,
            "created": int(time.time()),
            "model": adapter.name,
            "system_fingerprint": adapter.fingerprint,
        }
        begun: set[int] = set()
        writer = adapter.open_captures(generation.requests[0])
        produced, last = 0, None
        for piece in observed.watch(generation):
            produced += piece.produced
            is_first = piece.index not in begun
            captured = [] if writer is None else _write_captured(writer, piece)
            for choice in self.to_choices(
                piece, adapter.tokenizer, is_first=is_first, has_logprobs=has_logprobs, captured=captured
            ):
                if last is not None:
                    yield last
                last = self.chunk_type(**stamp, choices=[choice], usage=None)
            begun.add(piece.index)
            if last is not None and piece.reason is None:  # only what may be the last of all waits for the end
                yield last
                last = None
        payload = adapter.extra_payload(generation.requests[0])
        extra: dict[str, Any] = {} if payload is None else {"longctx": payload}
        if last is not None:
            yield last.model_copy(update=extra)
        usage = build_usage(generation.requests, produced, adapter)
        observed.describe_answer(stamp["id"], usage, generation.requests)
        yield self.chunk_type(**stamp, **extra, choices=[], usage=usage)


def _write_captured(writer: CaptureWriter, piece: OutputChunk) -> list[Captured]:
    news = writer.write(piece.index, piece.captured) if piece.captured else []
    return news if piece.reason is None else [*news, *writer.end(piece.index)]
