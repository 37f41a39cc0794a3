"""Text-completion protocol of OpenAI's API: prompts in, chunks out, and chunks gathered into one answer.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar, cast

from fovea.api.interventions import Captured
from fovea.api.text import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from fovea.errors import InvalidOption
from services.llm_longctx.engine import GenerationRequest, ScoredToken
from services.llm_longctx.serving.adapters.base import RequestState, TextModelAdapter
from services.llm_longctx.serving.answer_text import OutputChunk, TextOptions
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.grammars.formats import find_unenforced_keywords
from services.llm_longctx.serving.protocol import MIN_LOGPROB, CompletionProtocol, join_captured, to_prompt_logprobs
from services.llm_longctx.serving.request_options import build_text_options, check_scores
from shared.lm.tokenizer import Tokenizer


class TextCompletionProtocol(CompletionProtocol[CompletionRequest, Completion, Completion]):
    """Text completion."""

    id_prefix: ClassVar[str] = "cmpl"
    object_name: ClassVar[str] = "text_completion"
    operation: ClassVar[str] = "text_completion"
    chunk_type = Completion

    def begin(
        self, generation: Generation, adapter: TextModelAdapter, request: CompletionRequest, state: RequestState | None
    ) -> None:
        if request.best_of is not None and request.best_of != request.n:
            hint = "Leave it out, or ask for n answers with logprobs and choose."
            raise InvalidOption("best_of is not served beyond n.", hint=hint, field="best_of")
        prompts = _list_prompts(request)
        if state is not None and len(prompts) > 1:
            raise InvalidOption("A session or a document takes one prompt at a time.", field="prompt")
        grammar = adapter.add_rules(adapter.compile_grammar(request), request)
        generation.unenforced += find_unenforced_keywords(request)
        built = [_build_request(adapter, prompt, request, state) for prompt in prompts]
        for engine_request, _ in built:
            generation.extend(engine_request)
        check_scores([one for one, _ in built])
        for engine_request, options in built:
            generation.begin(engine_request, options, grammar)

    def to_choices(
        self, piece: OutputChunk, tokenizer: Tokenizer, *, is_first: bool, has_logprobs: bool, captured: list[Captured]
    ) -> Iterator[CompletionChoice]:
        scores = _to_logprobs(piece.tokens, tokenizer) if has_logprobs else None
        more: dict[str, Any] = {"captured": captured} if captured else {}
        if piece.stop is not None:
            more["stop_reason"] = piece.stop
        if piece.scored:
            more["prompt_logprobs"] = to_prompt_logprobs(piece.scored, tokenizer)
        yield CompletionChoice(index=piece.index, text=piece.text, logprobs=scores, finish_reason=piece.reason, **more)

    def gather(self, chunks: Iterable[Completion]) -> Completion:
        pieces, received = dict[int, list[CompletionChoice]](), list(chunks)
        for choice in [choice for chunk in received for choice in chunk.choices]:
            pieces.setdefault(choice.index, []).append(choice)
        if not received or received[-1].usage is None:
            raise ValueError("a whole answer ends with its usage")
        return received[-1].model_copy(update={"choices": [_join(pieces[i]) for i in sorted(pieces)]})

    def replay(self, answer: str) -> list[Completion]:
        completion = Completion.model_validate_json(answer)
        return [completion.model_copy(update={"usage": None}), completion.model_copy(update={"choices": []})]


def _list_prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise InvalidOption("prompt holds no prompt.", field="prompt")
    return list(cast("list[str] | list[list[int]]", prompt))


def _build_request(
    adapter: TextModelAdapter, prompt: str | list[int], request: CompletionRequest, state: RequestState | None
) -> tuple[GenerationRequest, TextOptions]:
    special = request.add_special_tokens is not False
    ids, hidden = adapter.tokenize(prompt, "prompt", special=special) if isinstance(prompt, str) else prompt, 0
    if not ids:
        ids, hidden = [adapter.tokenizer.start], 1
    elif isinstance(prompt, str) and request.echo:
        hidden = len(ids) - len(adapter.tokenize(prompt, "prompt", special=False))
    text = prompt if isinstance(prompt, str) and not hidden else None
    built = adapter.build_request(ids, request.longest, request, "prompt", text=text, state=state)
    if request.truncation_side == "left":  # what is hidden goes first
        hidden = max(hidden - max(len(ids) - len(built.prompt_ids), 0), 0)
    score_from = (request.longctx.logprobs_from if request.longctx else None) or 0
    built.top_logprobs = request.logprobs
    built.score_prompt = built.score_prompt or (request.echo and request.logprobs is not None)
    built.score_from = min(score_from, len(built.prompt_ids))
    asked = request.prompt_logprobs
    return built, build_text_options(request, echo=request.echo, hidden=hidden, prompt_logprobs=asked)


def _to_logprobs(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> CompletionLogprobs:
    top: list[dict[str, float] | None] = []
    for one in tokens:
        named: dict[str, float] = {}
        for i, logprob in one.top:  # the likeliest first; a text that is taken already leaves a token its id
            named[f"token_id:{i}" if (text := tokenizer.token_text(i)) in named else text] = max(logprob, MIN_LOGPROB)
        top.append(None if one.logprob is None else named)
    logprobs = [None if one.logprob is None else max(one.logprob, MIN_LOGPROB) for one in tokens]
    spelled, offsets = [tokenizer.token_text(one.id) for one in tokens], [one.offset for one in tokens]
    return CompletionLogprobs(tokens=spelled, token_logprobs=logprobs, top_logprobs=top, text_offset=offsets)


def _join(pieces: Sequence[CompletionChoice]) -> CompletionChoice:
    """One answer from all its pieces."""
    scores = [one.logprobs for one in pieces if one.logprobs is not None]
    lists = {name: [*chain.from_iterable(getattr(s, name) for s in scores)] for name in CompletionLogprobs.model_fields}
    joined = {
        "text": "".join(one.text for one in pieces),
        "logprobs": CompletionLogprobs(**lists) if scores else None,
        "prompt_logprobs": [*chain.from_iterable(one.prompt_logprobs or () for one in pieces)] or None,
        "captured": join_captured(chain.from_iterable(one.captured or () for one in pieces)) or None,
    }
    return pieces[-1].model_copy(update=joined)
