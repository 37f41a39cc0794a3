"""Chat in OpenAI's form: a conversation in, chunks out, and chunks gathered into one completion.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from services.llm_longctx.serving.adapters.base import TextModelAdapter, check, samplings, usage_of
from services.llm_longctx.serving.generation import Generation, OutputChunk, StreamedToken, TextOptions
from services.llm_longctx.serving.grammars import Automaton, grammar_of, require_speakable
from services.llm_longctx.serving.request_state import Brought
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

__all__ = ["chunks", "gather", "replayed"]


def chunks(
    speaker: TextModelAdapter, request: ChatRequest, run: CallContext, brought: Brought | None = None
) -> Iterator[ChatChunk]:
    """Begin to answer; the last chunk has the usage and no choices.

    Raises:
        InvalidOption: An option that is not served.
        ContextLengthExceeded: The conversation does not fit the context.
        QueueFull: Too many requests wait.
    """
    grammar = _check(request)
    if grammar is not None:
        require_speakable(grammar, speaker.tokenizer, speaker.vocab)
    text = speaker.dialogue(request.messages)
    ids = speaker.read(text, "messages", special=False)
    if not ids:
        detail = "The conversation is empty under the model's template."
        raise InvalidOption(detail, field="messages")
    most = request.max_completion_tokens or request.max_tokens
    prompt = speaker.build_request(ids, most, request, "messages", text=text, brought=brought)
    top = (request.top_logprobs or 0) if request.logprobs else None
    generation = Generation(speaker.scheduler, speaker.tokenizer, run)
    options = TextOptions(request.stop or ())
    generation.begin(replace(prompt, top_logprobs=top), samplings(request), options, grammar)
    return _chunks(speaker, generation, scored=request.logprobs)


def _check(request: ChatRequest) -> Automaton | None:
    """Refuse what is not served; what the answer may say."""
    check(request)
    if request.top_logprobs is not None and not request.logprobs:
        detail = "top_logprobs needs logprobs to be true."
        raise InvalidOption(detail, field="top_logprobs")
    return grammar_of(request.response_format)


def _chunks(speaker: TextModelAdapter, generation: Generation, *, scored: bool) -> Iterator[ChatChunk]:
    stamp: dict[str, Any] = {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": speaker.name,
        "system_fingerprint": speaker.fingerprint,
    }
    begun: set[int] = set()
    produced, last = 0, None
    for piece in generation:
        produced += piece.produced
        for choice in _choices(piece, speaker.tokenizer, first=piece.index not in begun, scored=scored):
            if last is not None:
                yield last
            last = ChatChunk(**stamp, choices=[choice], usage=None)
        begun.add(piece.index)
        if last is not None and piece.reason is None:  # only what may be the last of all waits for the end
            yield last
            last = None
    told = speaker.extra_payload(generation.requests[0])
    beside = {} if told is None else {"longctx": told}
    if last is not None:
        yield last.model_copy(update=beside)
    usage = usage_of(generation.requests, produced, speaker)
    yield ChatChunk(**stamp, **beside, choices=[], usage=usage)


def _choices(piece: OutputChunk, tokenizer: Tokenizer, *, first: bool, scored: bool) -> Iterator[ChunkChoice]:
    """What one piece is as deltas: the role before all, text with its log-probabilities, then the end."""

    def choice(delta: Delta, **more: Any) -> ChunkChoice:
        return ChunkChoice(**{"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None} | more)

    if first:
        yield choice(Delta(role="assistant", content=""))
    if piece.text or piece.tokens:
        logprobs = ChatLogprobs(content=[_scored(s, tokenizer) for s in piece.tokens], refusal=None) if scored else None
        yield choice(Delta(content=piece.text), logprobs=logprobs)
    if piece.reason is not None:
        yield choice(Delta(), finish_reason=piece.reason)


def _scored(shown: StreamedToken, tokenizer: Tokenizer) -> TokenLogprob:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = list(tokenizer.token_bytes(token))
        return {"token": tokenizer.token_text(token), "logprob": max(logprob, -9999.0), "bytes": raw}

    token = shown.token
    top = [TopLogprob(**entry(i, logprob)) for i, logprob in token.top]
    return TokenLogprob(**entry(token.id, token.logprob or 0.0), top_logprobs=top)


def gather(pieces: Iterable[ChatChunk]) -> ChatCompletion:
    """One completion from all chunks of an answer, the one with the usage included."""
    texts: dict[int, str] = {}
    scores: dict[int, list[TokenLogprob]] = {}
    reasons: dict[int, Any] = {}
    last: ChatChunk | None = None
    for chunk in pieces:
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


def replayed(given: str) -> list[ChatChunk]:
    """The chunks of an answer (JSON) that was given before: one per choice, then the usage."""
    answer = ChatCompletion.model_validate_json(given)
    stamp: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.system_fingerprint,
        "longctx": answer.longctx,
    }
    choices = [
        ChunkChoice(
            index=one.index,
            delta=Delta(role="assistant", content=one.message.content),
            logprobs=one.logprobs,
            finish_reason=one.finish_reason,
        )
        for one in answer.choices
    ]
    whole = [ChatChunk(**stamp, choices=[choice], usage=None) for choice in choices]
    return [*whole, ChatChunk(**stamp, choices=[], usage=answer.usage)]
