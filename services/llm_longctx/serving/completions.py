"""Completion in OpenAI's form: prompts in, chunks out, and chunks gathered into one answer.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.adapters.base import TextModelAdapter, check, samplings, usage_of
from services.llm_longctx.serving.generation import Generation, OutputChunk, StreamedToken, TextOptions
from services.llm_longctx.serving.request_state import Brought
from shared.api.text import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from shared.errors import InvalidOption
from shared.lm.tokenizer import Tokenizer
from shared.registry import CallContext

__all__ = ["chunks", "gather", "replayed"]

MOST_PROMPTS = 32
"""Prompts in one request; each waits and runs by itself."""


def chunks(
    speaker: TextModelAdapter, request: CompletionRequest, run: CallContext, brought: Brought | None = None
) -> Iterator[Completion]:
    """Begin to answer; the last chunk has the usage and no choices.

    Raises:
        InvalidOption: An option that is not served.
        ContextLengthExceeded: A prompt does not fit the context.
        QueueFull: Too many requests wait.
    """
    _check(request)
    given = _prompts(request)
    if brought is not None and len(given) > 1:
        detail = "A session or a document takes one prompt at a time."
        raise InvalidOption(detail, field="prompt")
    prompts = [_prompt(speaker, one, request, brought) for one in given]
    generation = Generation(speaker.scheduler, speaker.tokenizer, run)
    for prompt, options in prompts:
        generation.begin(prompt, samplings(request), options)
    return _chunks(speaker, generation, scored=request.logprobs is not None)


def _check(request: CompletionRequest) -> None:
    check(request)
    if request.suffix:
        detail = "suffix is not served: these models only read forwards."
        raise InvalidOption(detail, field="suffix")
    if request.best_of is not None and request.best_of != request.n:
        detail = "best_of is not served beyond n."
        raise InvalidOption(detail, hint="Leave it out, or ask for n answers with logprobs.", field="best_of")


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts, one by one."""
    given = request.prompt
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]
    if not 1 <= len(given) <= MOST_PROMPTS:
        detail = f"prompt holds {len(given)} prompts; 1 to {MOST_PROMPTS} are answered at a time."
        raise InvalidOption(detail, field="prompt")
    return list(cast("list[str] | list[list[int]]", given))


def _prompt(
    speaker: TextModelAdapter, given: str | list[int], request: CompletionRequest, brought: Brought | None
) -> tuple[GenerationRequest, TextOptions]:
    ids, hidden = speaker.read(given, "prompt") if isinstance(given, str) else given, 0
    if not ids:
        ids, hidden = [speaker.tokenizer.start], 1
    elif isinstance(given, str) and request.echo:
        hidden = len(ids) - len(speaker.read(given, "prompt", special=False))
    text = given if isinstance(given, str) and not hidden else None
    prompt = speaker.build_request(ids, request.max_tokens, request, "prompt", text=text, brought=brought)
    scored_from = (request.longctx.logprobs_from if request.longctx else None) or 0
    prompt = replace(
        prompt,
        top_logprobs=request.logprobs,
        score_prompt=request.echo and request.logprobs is not None,
        score_from=min(scored_from, len(ids)),
    )
    return prompt, TextOptions(request.stop or (), request.echo, hidden)


def _chunks(speaker: TextModelAdapter, generation: Generation, *, scored: bool) -> Iterator[Completion]:
    stamp: dict[str, Any] = {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": speaker.name,
        "system_fingerprint": speaker.fingerprint,
    }
    produced, last = 0, None
    for piece in generation:
        produced += piece.produced
        if last is not None:
            yield last
        last = Completion(**stamp, choices=[_choice(piece, speaker.tokenizer, scored=scored)], usage=None)
        if piece.reason is None:  # only what may be the last of all waits for the end
            yield last
            last = None
    told = speaker.extra_payload(generation.requests[0])
    beside = {} if told is None else {"longctx": told}
    if last is not None:
        yield last.model_copy(update=beside)
    usage = usage_of(generation.requests, produced, speaker)
    yield Completion(**stamp, **beside, choices=[], usage=usage)


def _choice(piece: OutputChunk, tokenizer: Tokenizer, *, scored: bool) -> CompletionChoice:
    logprobs = _logprobs(piece.tokens, tokenizer) if scored else None
    return CompletionChoice(index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=piece.reason)


def _logprobs(tokens: Sequence[StreamedToken], tokenizer: Tokenizer) -> CompletionLogprobs:
    top = [
        {tokenizer.token_text(i): max(lp, -9999.0) for i, lp in s.token.top} if s.token.logprob is not None else None
        for s in tokens
    ]
    return CompletionLogprobs(
        tokens=[tokenizer.token_text(s.token.id) for s in tokens],
        token_logprobs=[None if s.token.logprob is None else max(s.token.logprob, -9999.0) for s in tokens],
        top_logprobs=top,
        text_offset=[s.offset for s in tokens],
    )


def gather(pieces: Iterable[Completion]) -> Completion:
    """One answer from all its chunks, the one with the usage included."""
    whole: dict[int, CompletionChoice] = {}
    last: Completion | None = None
    for chunk in pieces:
        last = chunk
        for choice in chunk.choices:
            whole[choice.index] = _joined(whole[choice.index], choice) if choice.index in whole else choice
    if last is None or last.usage is None:
        message = "a whole answer ends with its usage"
        raise ValueError(message)
    return last.model_copy(update={"choices": [whole[i] for i in sorted(whole)]})


def _joined(begun: CompletionChoice, more: CompletionChoice) -> CompletionChoice:
    logprobs = begun.logprobs
    if logprobs is not None and more.logprobs is not None:
        logprobs = CompletionLogprobs(
            **{
                name: [*getattr(logprobs, name), *getattr(more.logprobs, name)]
                for name in CompletionLogprobs.model_fields
            }
        )
    return begun.model_copy(
        update={"text": begun.text + more.text, "logprobs": logprobs, "finish_reason": more.finish_reason}
    )


def replayed(given: str) -> list[Completion]:
    """The chunks of an answer (JSON) that was given before: all choices, then the usage."""
    answer = Completion.model_validate_json(given)
    return [answer.model_copy(update={"usage": None}), answer.model_copy(update={"choices": []})]
