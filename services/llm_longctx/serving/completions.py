"""Text-completion protocol of OpenAI's API: prompts in, chunks out, and chunks gathered into one answer.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, cast

from services.llm_longctx.engine import GenerationRequest, ScoredToken
from services.llm_longctx.engine.taps import CaptureSize
from services.llm_longctx.serving.adapters.base import TextModelAdapter, check_options
from services.llm_longctx.serving.generation import Generation, OutputChunk, TextOptions
from services.llm_longctx.serving.grammars.formats import find_unenforced_keywords
from services.llm_longctx.serving.protocol import CompletionProtocol
from services.llm_longctx.serving.request_state import RequestState
from services.llm_longctx.serving.steering.build_taps import check_captured
from services.llm_longctx.serving.steering.capture_writer import join_captured
from shared.api.interventions import Captured
from shared.api.text import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from shared.errors import InvalidOption
from shared.lm.tokenizer import Tokenizer

MAX_PROMPTS = 32
"""Most prompts in one request; each waits and runs by itself."""

_MIN_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity."""


class TextCompletionProtocol(CompletionProtocol[CompletionRequest, Completion, Completion]):
    """Text completion."""

    id_prefix: ClassVar[str] = "cmpl"
    object_name: ClassVar[str] = "text_completion"
    operation: ClassVar[str] = "text_completion"
    chunk_type = Completion

    def begin(
        self, generation: Generation, adapter: TextModelAdapter, request: CompletionRequest, state: RequestState | None
    ) -> None:
        _check(request)
        prompts = _list_prompts(request)
        if state is not None and len(prompts) > 1:
            detail = "A session or a document takes one prompt at a time."
            raise InvalidOption(detail, field="prompt")
        grammar = adapter.compile_grammar(request)
        generation.unenforced += find_unenforced_keywords(request)
        built = [_build_request(adapter, prompt, request, state) for prompt in prompts]
        check_captured(sum((one.taps.size for one, _ in built if one.taps is not None), CaptureSize()))
        for engine_request, options in built:
            generation.begin(engine_request, options, grammar)

    def wants_logprobs(self, request: CompletionRequest) -> bool:
        return request.logprobs is not None

    def to_choices(
        self,
        piece: OutputChunk,
        tokenizer: Tokenizer,
        *,
        is_first: bool,
        has_logprobs: bool,
        captured: Sequence[Captured] = (),
    ) -> Iterator[CompletionChoice]:
        logprobs = _to_logprobs(piece.tokens, tokenizer) if has_logprobs else None
        choice = CompletionChoice(index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=piece.reason)
        yield choice.model_copy(update={"captured": list(captured)}) if captured else choice

    def gather(self, chunks: Iterable[Completion]) -> Completion:
        whole: dict[int, CompletionChoice] = {}
        last: Completion | None = None
        for chunk in chunks:
            last = chunk
            for choice in chunk.choices:
                whole[choice.index] = _join(whole[choice.index], choice) if choice.index in whole else choice
        if last is None or last.usage is None:
            message = "a whole answer ends with its usage"
            raise ValueError(message)
        return last.model_copy(update={"choices": [whole[i] for i in sorted(whole)]})

    def replay(self, answer: str) -> list[Completion]:
        completion = Completion.model_validate_json(answer)
        return [completion.model_copy(update={"usage": None}), completion.model_copy(update={"choices": []})]


def _check(request: CompletionRequest) -> None:
    check_options(request)
    if request.suffix:
        detail = "suffix is not served: these models only read forwards."
        raise InvalidOption(detail, field="suffix")
    if request.best_of is not None and request.best_of != request.n:
        detail = "best_of is not served beyond n."
        raise InvalidOption(detail, hint="Leave it out, or ask for n answers with logprobs.", field="best_of")


def _list_prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    if not 1 <= len(prompt) <= MAX_PROMPTS:
        detail = f"prompt holds {len(prompt)} prompts; 1 to {MAX_PROMPTS} are answered at a time."
        raise InvalidOption(detail, field="prompt")
    return list(cast("list[str] | list[list[int]]", prompt))


def _build_request(
    adapter: TextModelAdapter, prompt: str | list[int], request: CompletionRequest, state: RequestState | None
) -> tuple[GenerationRequest, TextOptions]:
    ids, hidden = adapter.tokenize(prompt, "prompt") if isinstance(prompt, str) else prompt, 0
    if not ids:
        ids, hidden = [adapter.tokenizer.start], 1
    elif isinstance(prompt, str) and request.echo:
        hidden = len(ids) - len(adapter.tokenize(prompt, "prompt", special=False))
    text = prompt if isinstance(prompt, str) and not hidden else None
    built = adapter.build_request(ids, request.max_tokens, request, "prompt", text=text, state=state)
    score_from = (request.longctx.logprobs_from if request.longctx else None) or 0
    built.top_logprobs = request.logprobs
    built.score_prompt = request.echo and request.logprobs is not None
    built.score_from = min(score_from, len(ids))
    return built, TextOptions(request.stop or (), request.echo, hidden)


def _to_logprobs(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> CompletionLogprobs:
    text = tokenizer.token_text
    top = [
        {text(i): max(logprob, _MIN_LOGPROB) for i, logprob in one.top} if one.logprob is not None else None
        for one in tokens
    ]
    logprobs = [None if one.logprob is None else max(one.logprob, _MIN_LOGPROB) for one in tokens]
    return CompletionLogprobs(
        tokens=[text(one.id) for one in tokens],
        token_logprobs=logprobs,
        top_logprobs=top,
        text_offset=[one.offset for one in tokens],
    )


def _join(begun: CompletionChoice, more: CompletionChoice) -> CompletionChoice:
    logprobs = begun.logprobs
    if logprobs is not None and more.logprobs is not None:
        logprobs = CompletionLogprobs(
            **{
                name: [*getattr(logprobs, name), *getattr(more.logprobs, name)]
                for name in CompletionLogprobs.model_fields
            }
        )
    return begun.model_copy(
        update={
            "text": begun.text + more.text,
            "logprobs": logprobs,
            "finish_reason": more.finish_reason,
            "captured": join_captured([*(begun.captured or ()), *(more.captured or ())]) or None,
        }
    )
