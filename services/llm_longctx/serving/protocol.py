"""Completion protocol of OpenAI's API: how a request becomes chunks, and how chunks become one answer.

Parts shared by chat and text completion: stamps, the chunk held back for the extra payload, and the usage at the end.
Subclasses know the chunks of theirs. Knows nothing about HTTP or the engine.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar
from uuid import uuid4

from fovea.api.interventions import Captured
from fovea.api.text import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    GenerationOptions,
    PromptLogprob,
    PromptLogprobs,
    Usage,
)
from services.llm_longctx.engine import ScoredToken
from services.llm_longctx.serving.adapters.base import RequestState, TextModelAdapter, build_usage
from services.llm_longctx.serving.answer_text import OutputChunk
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.generation_span import GenerationSpan
from services.llm_longctx.serving.request_extension import open_extensions
from services.llm_longctx.serving.request_options import check_options
from shared.lm.tokenizer import Tokenizer
from shared.registry import CallContext

RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)
ChunkT = TypeVar("ChunkT", ChatChunk, Completion)
AnswerT = TypeVar("AnswerT", ChatCompletion, Completion)


MIN_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity."""


class CompletionProtocol(ABC, Generic[RequestT, ChunkT, AnswerT]):
    """One of the two protocols: its requests, its chunks and its whole answers.

    Class attributes:
        id_prefix: Beginning of the ids of answers.
        object_name: The `object` of a chunk.
        operation: Its name in OpenTelemetry's conventions.
    """

    id_prefix: ClassVar[str]
    object_name: ClassVar[str]
    operation: ClassVar[str]
    chunk_type: type[ChunkT]

    async def stream(
        self, adapter: TextModelAdapter, request: RequestT, run: CallContext
    ) -> AsyncGenerator[ChunkT, None]:
        """Answer; the last chunk has the usage and no choices.

        Raises:
            InvalidOption: An option that is not served.
            ContextLengthExceeded: A prompt does not fit the context.
            QueueFull: Too many requests wait.
            NotFound: A field that belongs to a plug-in which is not installed.
            FoveaError: A plug-in refuses the request.
        """
        extensions = open_extensions(adapter, request, run)
        warnings = check_options(request)
        state: RequestState | None = run.state
        span = GenerationSpan(self.operation, adapter.served_as, request)
        try:
            variants = [request]
            for extension in extensions:
                variants = [varied for one in variants for varied in extension.vary(one)]
            with Generation(adapter.scheduler, adapter.tokenizer, run, extensions) as generation:
                generation.warnings += warnings
                with span.span.activate():
                    for one in variants:
                        await asyncio.to_thread(self.begin, generation, adapter, one, state)
                run.consume(tokens_in=sum(len(one.prompt_ids) for one in generation.requests))
                chunks = _ChunkBuilder(self, adapter, generation, request)
                sent: list[ChunkT] = []
                while (piece := await generation.read()) is not None:
                    span.note(piece)
                    for chunk in await chunks.add(piece):
                        sent += [chunk] if state is not None else ()
                        yield chunk
                added: dict[str, Any] = {}
                for extension in extensions:
                    added |= await extension.finish(generation.requests)
            last: list[ChunkT] = await chunks.end(span, added)
            run.consume(tokens_out=chunks.produced)
            if state is not None:  # what the last chunks report must be true when they are read
                await state.commit(self.gather(sent + last).model_dump_json())
            wants_usage = not request.stream or (request.stream_options and request.stream_options.include_usage)
            for chunk in last if wants_usage else last[:-1]:
                yield chunk
        except Exception as error:
            span.span.fail(error)
            raise
        finally:
            span.span.end()

    @abstractmethod
    def begin(
        self, generation: Generation, adapter: TextModelAdapter, request: RequestT, state: RequestState | None
    ) -> None:
        """Check a request and hand it to the engine; raises as `stream`."""

    @abstractmethod
    def to_choices(
        self, piece: OutputChunk, tokenizer: Tokenizer, *, is_first: bool, has_logprobs: bool, captured: list[Captured]
    ) -> Iterable[Any]:
        """Choices of the chunks that carry one piece of an answer; `is_first` for the first piece of it."""

    def fields_of(self, piece: OutputChunk, tokenizer: Tokenizer) -> dict[str, Any]:
        """Fields of the chunks, besides choices, that carry one piece of an answer."""
        return {}

    @abstractmethod
    def gather(self, chunks: Iterable[ChunkT]) -> AnswerT:
        """Join all chunks of an answer, the one with the usage included."""

    @abstractmethod
    def replay(self, answer: str) -> list[ChunkT]:
        """The chunks of a whole answer (JSON) that was given before, the usage last."""


class _ChunkBuilder(Generic[ChunkT]):
    """Makes the chunks of one answer: stamps them, and holds back what may be the last one with choices."""

    def __init__(
        self,
        protocol: CompletionProtocol[Any, ChunkT, Any],
        adapter: TextModelAdapter,
        generation: Generation,
        request: GenerationOptions,
    ) -> None:
        self._protocol: CompletionProtocol[Any, ChunkT, Any] = protocol
        self._adapter, self._generation = adapter, generation
        self._has_logprobs = generation.requests[0].top_logprobs is not None
        options = request.stream_options if request.stream else None
        self._has_usage = options is not None and options.include_usage and options.continuous_usage_stats
        self._stamp: dict[str, Any] = {
            "id": f"{protocol.id_prefix}-{uuid4().hex}",
            "object": protocol.object_name,
            "created": int(time.time()),
            "model": adapter.served_as,
            "system_fingerprint": adapter.fingerprint,
        }
        self._begun: set[int] = set()
        self.produced = 0
        self._so_far: dict[int, int] = {}
        self._held: ChunkT | None = None

    async def add(self, piece: OutputChunk) -> list[ChunkT]:
        """The chunks that can be sent once this piece is there."""
        self.produced += piece.produced
        self._so_far[piece.index] = max(piece.produced, piece.so_far, self._so_far.get(piece.index, 0))
        captured: list[Captured] = []
        if piece.captured or piece.reason is not None:
            for one in self._generation.extensions:
                captured += await asyncio.to_thread(one.capture, piece)
        is_first = piece.index not in self._begun
        choices = self._protocol.to_choices(
            piece, self._adapter.tokenizer, is_first=is_first, has_logprobs=self._has_logprobs, captured=captured
        )
        self._begun.add(piece.index)
        stamp = self._stamp | self._protocol.fields_of(piece, self._adapter.tokenizer)
        usage = self._count() if self._has_usage else None
        chunks = [self._protocol.chunk_type(**stamp, choices=[choice], usage=usage) for choice in choices]
        if self._held is not None and chunks:
            chunks.insert(0, self._held)
            self._held = None
        if piece.reason is not None and chunks:  # only what may be the last of all waits for the end
            self._held = chunks.pop()
        return chunks

    def _count(self) -> Usage:
        """The usage so far."""
        read = sum(len(request.prompt_ids) for request in self._generation.requests)
        made = sum(self._so_far.values())
        return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)

    async def end(self, span: GenerationSpan, added: dict[str, Any]) -> list[ChunkT]:
        """The last chunk with choices, which has the extra payload and the warnings, and the one with the usage."""
        requests, adapter = self._generation.requests, self._adapter
        payload = await adapter.extra_payload(requests[0])
        extra = added if payload is None else {"longctx": payload, **added}
        told = [*dict.fromkeys(self._generation.warnings)]  # once for all answers of a comparison
        extra |= {"warnings": told} if told else {}
        usage = build_usage(requests, self.produced, adapter, self._generation.unenforced)
        span.describe_answer(self._stamp["id"], usage, requests)
        last: list[ChunkT] = [] if self._held is None else [self._held.model_copy(update=extra)]
        last.append(self._protocol.chunk_type(**self._stamp, **extra, choices=[], usage=usage))
        return last


def to_prompt_logprobs(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> PromptLogprobs:
    """The prompt's log-probabilities as vLLM writes them, the token's own first; null where there is none."""

    def entry(token: int, logprob: float, rank: int | None) -> PromptLogprob:
        return PromptLogprob(logprob=max(logprob, MIN_LOGPROB), rank=rank, decoded_token=tokenizer.token_text(token))

    found: PromptLogprobs = []
    for one in tokens:
        ranks = {token: (logprob, rank) for rank, (token, logprob) in enumerate(one.top, 1)}
        own = {} if one.logprob is None else {one.id: ranks.get(one.id, (one.logprob, None))}
        found.append({i: entry(i, *score) for i, score in (own | ranks).items()} or None)
    return found


def join_captured(pieces: Iterable[Captured]) -> list[Captured]:
    """One entry per capture, the pieces of a stream put together; a file stands for all that is in it."""
    whole: dict[int, Captured] = {}
    for piece in pieces:
        begun = whole.get(piece.capture)
        if begun is None or piece.url is not None:
            whole[piece.capture] = piece
        else:
            more = {
                name: [*(getattr(begun, name) or ()), *new]
                for name in ("positions", "tokens", "values", "lens")
                if (new := getattr(piece, name))
            }
            whole[piece.capture] = begun.model_copy(update=more | ({"id": piece.id} if piece.id else {}))
    return [whole[i] for i in sorted(whole)]
