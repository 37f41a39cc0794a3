"""Chat protocol of OpenAI's API: a conversation in, chunks out, and chunks gathered into one completion.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from services.llm_longctx.serving.adapters.base import TextModelAdapter, build_samplings, check_options
from services.llm_longctx.serving.generation import Generation, OutputChunk, StreamedToken, TextOptions
from services.llm_longctx.serving.grammars.token_grammar import Automaton, build_grammar, require_feasible
from services.llm_longctx.serving.protocol import CompletionProtocol
from services.llm_longctx.serving.request_state import RequestState
from shared.api.text import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    Reply,
    TokenLogprob,
    TopLogprob,
)
from shared.errors import InvalidOption
from shared.lm.tokenizer import Tokenizer
from shared.registry import CallContext

__all__ = ["ChatProtocol"]

_MIN_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity."""


class ChatProtocol(CompletionProtocol[ChatRequest, ChatChunk, ChatCompletion]):
    """Chat completion."""

    id_prefix: ClassVar[str] = "chatcmpl"
    object_name: ClassVar[str] = "chat.completion.chunk"
    chunk_type = ChatChunk

    def begin(
        self, adapter: TextModelAdapter, request: ChatRequest, run: CallContext, state: RequestState | None
    ) -> Generation:
        """Render the conversation, tokenize it and hand it to the engine."""
        grammar = _check(request)
        if grammar is not None:
            require_feasible(grammar, adapter.tokenizer, adapter.vocab)
        text = adapter.render_chat(request.messages)
        ids = adapter.tokenize(text, "messages", special=False)
        if not ids:
            detail = "The conversation is empty under the model's template."
            raise InvalidOption(detail, field="messages")
        most = request.max_completion_tokens or request.max_tokens
        engine_request = adapter.build_request(ids, most, request, "messages", text=text, state=state)
        top = (request.top_logprobs or 0) if request.logprobs else None
        generation = Generation(adapter.scheduler, adapter.tokenizer, run)
        options = TextOptions(request.stop or ())
        generation.begin(replace(engine_request, top_logprobs=top), build_samplings(request), options, grammar)
        return generation

    def wants_logprobs(self, request: ChatRequest) -> bool:
        """Whether `logprobs` is set."""
        return request.logprobs

    def to_choices(
        self, piece: OutputChunk, tokenizer: Tokenizer, *, is_first: bool, has_logprobs: bool
    ) -> Iterator[ChunkChoice]:
        """Deltas of one piece: the role before all, text with its log-probabilities, then the end."""

        def choice(delta: Delta, **more: Any) -> ChunkChoice:
            return ChunkChoice(**{"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None} | more)

        if is_first:
            yield choice(Delta(role="assistant", content=""))
        if piece.text or piece.tokens:
            scores = [_score(token, tokenizer) for token in piece.tokens]
            yield choice(
                Delta(content=piece.text), logprobs=ChatLogprobs(content=scores, refusal=None) if has_logprobs else None
            )
        if piece.reason is not None:
            yield choice(Delta(), finish_reason=piece.reason)

    def gather(self, chunks: Iterable[ChatChunk]) -> ChatCompletion:
        """Join all chunks into one completion."""
        texts: dict[int, str] = {}
        scores: dict[int, list[TokenLogprob]] = {}
        reasons: dict[int, Any] = {}
        last: ChatChunk | None = None
        for chunk in chunks:
            last = chunk
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                reasons[choice.index] = choice.finish_reason
                if choice.logprobs is not None:
                    scores.setdefault(choice.index, []).extend(choice.logprobs.content)
        if last is None or last.usage is None:
            message = "a whole answer ends with its usage"
            raise ValueError(message)
        choices = [
            ChatChoice(
                index=i,
                message=Reply(content=texts[i]),
                finish_reason=reasons[i],
                logprobs=ChatLogprobs(content=scores[i]) if i in scores else None,
            )
            for i in sorted(texts)
        ]
        return ChatCompletion(
            id=last.id,
            created=last.created,
            model=last.model,
            system_fingerprint=last.system_fingerprint,
            choices=choices,
            usage=last.usage,
            longctx=last.longctx,
        )

    def replay(self, answer: str) -> list[ChatChunk]:
        """One chunk per choice, then the usage."""
        completion = ChatCompletion.model_validate_json(answer)
        stamp: dict[str, Any] = {
            "id": completion.id,
            "object": self.object_name,
            "created": completion.created,
            "model": completion.model,
            "system_fingerprint": completion.system_fingerprint,
            "longctx": completion.longctx,
        }
        choices = [
            ChunkChoice(
                index=one.index,
                delta=Delta(role="assistant", content=one.message.content),
                logprobs=one.logprobs,
                finish_reason=one.finish_reason,
            )
            for one in completion.choices
        ]
        chunks = [ChatChunk(**stamp, choices=[choice], usage=None) for choice in choices]
        return [*chunks, ChatChunk(**stamp, choices=[], usage=completion.usage)]


def _check(request: ChatRequest) -> Automaton | None:
    """Refuse options that are not served; the grammar of the answer."""
    check_options(request)
    if request.top_logprobs is not None and not request.logprobs:
        detail = "top_logprobs needs logprobs to be true."
        raise InvalidOption(detail, field="top_logprobs")
    return build_grammar(request.response_format)


def _score(streamed: StreamedToken, tokenizer: Tokenizer) -> TokenLogprob:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = list(tokenizer.token_bytes(token))
        return {"token": tokenizer.token_text(token), "logprob": max(logprob, _MIN_LOGPROB), "bytes": raw}

    token = streamed.token
    top = [TopLogprob(**entry(i, logprob)) for i, logprob in token.top]
    return TokenLogprob(**entry(token.id, token.logprob or 0.0), top_logprobs=top)
