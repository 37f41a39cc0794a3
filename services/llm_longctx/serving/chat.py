"""Chat protocol of OpenAI's API: a conversation in, chunks out, and chunks gathered into one completion.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar
from uuid import uuid4

from fovea.api.interventions import Captured
from fovea.api.text import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    PromptLogprobs,
    Reply,
    StopReason,
    TokenLogprob,
    TopLogprob,
)
from fovea.api.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from fovea.errors import InvalidOption
from services.llm_longctx.engine import ScoredToken
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.answer_text import OutputChunk
from services.llm_longctx.serving.chat_template import read_template_options
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.grammars.formats import find_unenforced_keywords
from services.llm_longctx.serving.grammars.token_grammar import TokenGrammar
from services.llm_longctx.serving.protocol import MIN_LOGPROB, CompletionProtocol, join_captured, to_prompt_logprobs
from services.llm_longctx.serving.reasoning.reasoning_parser import find_reasoning_parser
from services.llm_longctx.serving.request_options import build_text_options
from services.llm_longctx.serving.request_state import RequestState
from services.llm_longctx.serving.tools.call_grammar import CallGrammar
from services.llm_longctx.serving.tools.tool_parser import CallUpdate
from services.llm_longctx.serving.tools.tool_use import ToolUse, read_tool_use
from shared.lm.tokenizer import Tokenizer


class ChatProtocol(CompletionProtocol[ChatRequest, ChatChunk, ChatCompletion]):
    """Chat completion."""

    id_prefix: ClassVar[str] = "chatcmpl"
    object_name: ClassVar[str] = "chat.completion.chunk"
    operation: ClassVar[str] = "chat"
    chunk_type = ChatChunk

    def begin(
        self, generation: Generation, adapter: TextModelAdapter, request: ChatRequest, state: RequestState | None
    ) -> None:
        if request.top_logprobs is not None and not request.logprobs:
            detail = "top_logprobs needs logprobs to be true."
            raise InvalidOption(detail, field="top_logprobs")
        own = adapter.tokenizer.chat_template
        form = read_template_options(request, own, may_bring=adapter.takes_templates)
        template = form.source or own
        tools = read_tool_use(request, template)
        grammar = adapter.add_rules(_compile_grammar(adapter, request, tools), request)
        text = adapter.render_chat(request.messages, form, tools=tools)
        ids = adapter.tokenize(text, "messages", special=bool(request.add_special_tokens))
        if not ids:
            detail = "The conversation is empty under the model's template."
            raise InvalidOption(detail, field="messages")
        engine_request = adapter.build_request(ids, request.longest, request, "messages", text=text, state=state)
        generation.extend(engine_request)
        engine_request.top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        if tools is not None:
            generation.use_parser(partial(tools.parser, tools.functions), is_forced=tools.is_forced)
        generation.unenforced += [] if tools is None else tools.unenforced
        if tools is None or not tools.is_forced:
            generation.unenforced += find_unenforced_keywords(request)
        if (reasoner := find_reasoning_parser(template)) is not None:
            generation.use_reasoner(partial(reasoner, text), is_shown=request.include_reasoning)
        options = build_text_options(request, prompt_logprobs=request.prompt_logprobs)
        generation.begin(engine_request, options, grammar)

    def wants_logprobs(self, request: ChatRequest) -> bool:
        return request.logprobs

    def to_choices(
        self,
        piece: OutputChunk,
        tokenizer: Tokenizer,
        *,
        is_first: bool,
        has_logprobs: bool,
        captured: Sequence[Captured] = (),
    ) -> Iterator[ChunkChoice]:
        def choice(delta: Delta, **more: Any) -> ChunkChoice:
            return ChunkChoice(**{"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None} | more)

        if is_first:
            yield choice(Delta(role="assistant", content="" if piece.has_text else None))
        elif piece.scored:
            yield choice(Delta())
        if captured:
            yield choice(Delta(), captured=list(captured))
        if piece.text or piece.thought or piece.tokens:
            scores = [_score(token, tokenizer) for token in piece.tokens]
            shows_text = piece.has_text and (piece.text or not piece.thought)
            delta = Delta(**({"content": piece.text} if shows_text else {}))
            if piece.thought:
                delta.reasoning_content = piece.thought
            yield choice(delta, logprobs=ChatLogprobs(content=scores, refusal=None) if has_logprobs else None)
        for update in piece.calls:
            yield choice(Delta(tool_calls=[_to_delta(update)]))
        if piece.reason is not None:
            stop = {} if piece.stop is None else {"stop_reason": piece.stop}
            yield choice(Delta(), finish_reason=piece.reason, **stop)

    def fields_of(self, piece: OutputChunk, tokenizer: Tokenizer) -> dict[str, Any]:
        if not piece.scored or piece.index:
            return {}
        return {"prompt_logprobs": to_prompt_logprobs(piece.scored, tokenizer)}

    def gather(self, chunks: Iterable[ChatChunk]) -> ChatCompletion:
        texts: dict[int, str | None] = {}
        thoughts: dict[int, str] = {}
        stops: dict[int, StopReason | None] = {}
        prompt: PromptLogprobs = []
        calls: dict[int, dict[int, ToolCall]] = {}
        scores: dict[int, list[TokenLogprob]] = {}
        reasons: dict[int, Any] = {}
        captured: dict[int, list[Captured]] = {}
        last: ChatChunk | None = None
        for chunk in chunks:
            last = chunk
            prompt += chunk.prompt_logprobs or ()
            for choice in chunk.choices:
                texts.setdefault(choice.index, None)
                if (text := choice.delta.content) is not None:
                    texts[choice.index] = (texts[choice.index] or "") + text
                thoughts[choice.index] = thoughts.get(choice.index, "") + (choice.delta.reasoning_content or "")
                reasons[choice.index], stops[choice.index] = choice.finish_reason, choice.stop_reason
                _add_calls(calls.setdefault(choice.index, {}), choice.delta.tool_calls or ())
                captured.setdefault(choice.index, []).extend(choice.captured or ())
                if choice.logprobs is not None:
                    scores.setdefault(choice.index, []).extend(choice.logprobs.content)
        if last is None or last.usage is None:
            message = "a whole answer ends with its usage"
            raise ValueError(message)
        choices = [
            ChatChoice(
                index=i,
                message=_to_reply(texts[i], thoughts[i], list(calls[i].values())),
                finish_reason=reasons[i],
                stop_reason=stops[i],
                logprobs=ChatLogprobs(content=scores[i]) if i in scores else None,
                captured=join_captured(captured[i]) or None,
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
            prompt_logprobs=prompt or None,
            warnings=last.warnings,
            comparison=last.comparison,
        )

    def replay(self, answer: str) -> list[ChatChunk]:
        completion = ChatCompletion.model_validate_json(answer)
        stamp: dict[str, Any] = {
            "id": completion.id,
            "object": self.object_name,
            "created": completion.created,
            "model": completion.model,
            "system_fingerprint": completion.system_fingerprint,
            "longctx": completion.longctx,
            "warnings": completion.warnings,
        }
        choices = [
            ChunkChoice(
                index=one.index,
                delta=_whole_delta(one.message),
                logprobs=one.logprobs,
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
                captured=one.captured,
            )
            for one in completion.choices
        ]
        chunks = [ChatChunk(**stamp, choices=[choice], usage=None) for choice in choices]
        return [*chunks, ChatChunk(**stamp, choices=[], usage=completion.usage)]


def _compile_grammar(
    adapter: TextModelAdapter, request: ChatRequest, tools: ToolUse | None
) -> TokenGrammar | CallGrammar | None:
    """Grammar of an answer: forced calls, the request's own, or free text in which calls are valid."""
    if tools is not None and tools.is_forced:
        return adapter.grammars.compile(tools.grammar_source(), "tools")
    asked = adapter.compile_grammar(request)
    if asked is not None or tools is None:
        return asked
    try:
        call = adapter.grammars.compile(tools.grammar_source(), "tools")
    except InvalidOption:  # functions that are too many for one grammar: their calls are read as they come
        return None
    return CallGrammar(call, tools.parser, frozenset(f.name for f in tools.functions), adapter.grammars)


def _to_delta(update: CallUpdate) -> ToolCallDelta:
    """News of a call; it gets its id with its name."""
    if update.name is None:
        return ToolCallDelta(index=update.index, function=FunctionCallDelta(arguments=update.arguments))
    function = FunctionCallDelta(name=update.name, arguments=update.arguments)
    return ToolCallDelta(index=update.index, id=f"call_{uuid4().hex[:24]}", type="function", function=function)


def _add_calls(calls: dict[int, ToolCall], deltas: Iterable[ToolCallDelta]) -> None:
    for delta in deltas:
        function = delta.function
        if delta.id is not None:
            begun = FunctionCall(name=function.name or "", arguments="")
            calls[delta.index] = ToolCall(id=delta.id, function=begun)
        calls[delta.index].function.arguments += function.arguments or ""


def _to_reply(text: str | None, thoughts: str, calls: list[ToolCall]) -> Reply:
    content = text if text or not (calls or thoughts) else None
    return Reply(content=content, reasoning_content=thoughts or None, tool_calls=calls or None)


def _whole_delta(message: Reply) -> Delta:
    """All of a message in one delta."""
    calls = [
        ToolCallDelta(index=i, id=call.id, type="function", function=FunctionCallDelta(**call.function.model_dump()))
        for i, call in enumerate(message.tool_calls or ())
    ]
    thoughts = {"reasoning_content": message.reasoning_content} if message.reasoning_content else {}
    return Delta(role="assistant", content=message.content, **thoughts, **({"tool_calls": calls} if calls else {}))


def _score(token: ScoredToken, tokenizer: Tokenizer) -> TokenLogprob:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = list(tokenizer.token_bytes(token))
        return {"token": tokenizer.token_text(token), "logprob": max(logprob, MIN_LOGPROB), "bytes": raw}

    top = [TopLogprob(**entry(i, logprob)) for i, logprob in token.top]
    return TokenLogprob(**entry(token.id, token.logprob or 0.0), top_logprobs=top)
