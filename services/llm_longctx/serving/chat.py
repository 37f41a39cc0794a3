"""Chat protocol of OpenAI's API: a conversation in, chunks out, and chunks gathered into one completion.

Knows the protocol's chunks; knows nothing about HTTP or the engine.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
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
    TokenLogprob,
    TopLogprob,
)
from fovea.api.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from fovea.errors import InvalidOption
from services.llm_longctx.engine import ScoredToken
from services.llm_longctx.serving.adapters.base import RequestState, TextModelAdapter
from services.llm_longctx.serving.answer_text import OutputChunk
from services.llm_longctx.serving.chat_template import read_template_options
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.grammars.formats import (
    asks_for_form,
    find_grammar_source,
    find_unenforced_keywords,
    may_hold,
)
from services.llm_longctx.serving.grammars.token_grammar import TokenGrammar
from services.llm_longctx.serving.protocol import MIN_LOGPROB, CompletionProtocol, join_captured, to_prompt_logprobs
from services.llm_longctx.serving.reasoning.reasoning_parser import find_reasoning_parser
from services.llm_longctx.serving.request_options import build_text_options
from services.llm_longctx.serving.tools.call_grammar import CallGrammar
from services.llm_longctx.serving.tools.tool_parser import CallUpdate
from services.llm_longctx.serving.tools.tool_use import ToolUse, read_tool_use
from shared.lm.tokenizer import Tokenizer

_STAMP = ("id", "created", "model", "system_fingerprint", "longctx", "warnings")
"""Fields that a chunk and a whole answer have in common."""


class ChatProtocol(CompletionProtocol[ChatRequest, ChatChunk, ChatCompletion]):
    """Chat completion."""

    id_prefix: ClassVar[str] = "chatcmpl"
    object_name: ClassVar[str] = "chat.completion.chunk"
    operation: ClassVar[str] = "chat"
    chunk_type = ChatChunk

    def begin(
        self, generation: Generation, adapter: TextModelAdapter, request: ChatRequest, state: RequestState | None
    ) -> None:
        if request.top_logprobs and not request.logprobs:
            raise InvalidOption("top_logprobs needs logprobs to be true.", field="top_logprobs")
        text, template, tools = render_prompt(adapter, request)
        is_formed = asks_for_form(request)
        if tools is not None:
            _check_form_with_tools(request)
        if tools is not None and not tools.is_forced and is_formed and tools.parser.is_first:
            tools = None  # such calls are JSON themselves
            generation.warnings.append("No tool can be called: this model's calls can't be told from the form.")
        grammar = adapter.add_rules(_compile_grammar(adapter, request, tools), request)
        ids = adapter.tokenize(text, "messages", special=bool(request.add_special_tokens))
        if not ids:
            raise InvalidOption("The conversation is empty under the model's template.", field="messages")
        engine_request = adapter.build_request(ids, request.longest, request, "messages", text=text, state=state)
        generation.extend(engine_request)
        engine_request.top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        is_forced = tools is not None and tools.is_forced
        if is_forced and find_grammar_source(request) is not None:
            generation.warnings.append("The answer is a call, as tool_choice wants, and not of the form asked for.")
        if tools is not None:
            generation.use_parser(partial(tools.parser, tools.functions), is_forced=is_forced)
            generation.unenforced += tools.unenforced
        generation.unenforced += () if is_forced else find_unenforced_keywords(request)
        if (reasoner := find_reasoning_parser(template)) is not None and not (is_forced or is_formed):
            begun = text if may_hold(request, reasoner.closing) else ""  # else all of the answer would be thoughts
            generation.use_reasoner(partial(reasoner, begun), is_shown=request.include_reasoning)
        options = build_text_options(request, prompt_logprobs=request.prompt_logprobs)
        generation.begin(engine_request, options, grammar)

    def to_choices(
        self, piece: OutputChunk, tokenizer: Tokenizer, *, is_first: bool, has_logprobs: bool, captured: list[Captured]
    ) -> Iterator[ChunkChoice]:
        def choice(delta: Delta, **more: Any) -> ChunkChoice:
            return ChunkChoice(**{"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None} | more)

        if is_first:
            yield choice(Delta(role="assistant", content="" if piece.has_text else None))
        elif piece.scored:
            yield choice(Delta())
        if captured:
            yield choice(Delta(), captured=captured)
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
        pieces: dict[int, list[ChunkChoice]] = {}
        prompt: PromptLogprobs = []
        last: ChatChunk | None = None
        for chunk in chunks:
            last = chunk
            prompt += chunk.prompt_logprobs or ()
            for choice in chunk.choices:
                pieces.setdefault(choice.index, []).append(choice)
        if last is None or last.usage is None:
            raise ValueError("a whole answer ends with its usage")
        choices = [_join_choices(pieces[i]) for i in sorted(pieces)]
        same = {name: getattr(last, name) for name in (*_STAMP, "usage", "comparison")}
        return ChatCompletion(**same, choices=choices, prompt_logprobs=prompt or None)

    def replay(self, answer: str) -> list[ChatChunk]:
        completion = ChatCompletion.model_validate_json(answer)
        stamp: dict[str, Any] = {name: getattr(completion, name) for name in _STAMP} | {"object": self.object_name}
        same = ("index", "logprobs", "finish_reason", "stop_reason", "captured")
        chunks = []
        for one in completion.choices:
            choice = ChunkChoice(delta=_whole_delta(one.message), **{name: getattr(one, name) for name in same})
            chunks.append(ChatChunk(**stamp, choices=[choice], usage=None))
        return [*chunks, ChatChunk(**stamp, choices=[], usage=completion.usage)]


def render_prompt(adapter: TextModelAdapter, request: ChatRequest) -> tuple[str, str | None, ToolUse | None]:
    """The text that a chat's answer goes on with, its template, and its tools. Raises InvalidOption: They don't fit."""
    own = adapter.tokenizer.chat_template
    form = read_template_options(request, own, may_bring=adapter.takes_templates)
    tools = read_tool_use(request, template := form.source or own)
    return adapter.render_chat(request.messages, form, tools=tools), template, tools


def _check_form_with_tools(request: ChatRequest) -> None:
    """Refuse tools together with a form that has no room for calls: InvalidOption."""
    given = request.structured_outputs
    named = "regex" if given is not None and given.regex is not None else "grammar"
    if given is not None and (given.regex or given.grammar) is not None:
        detail = f"No tool can be called in an answer that structured_outputs.{named} describes."
        hint = "Leave out tools or the form, give tool_choice none, or describe the form with json or choice."
        raise InvalidOption(detail, hint=hint, field="structured_outputs")


def _compile_grammar(
    adapter: TextModelAdapter, request: ChatRequest, tools: ToolUse | None
) -> TokenGrammar | CallGrammar | None:
    """Grammar of an answer: forced calls, the request's own, calls or a form, or free text in which calls are valid."""
    if tools is not None and tools.is_forced:
        return adapter.grammars.compile(tools.grammar_source(), "tools")
    asked, form = adapter.compile_grammar(request), find_grammar_source(request)
    if tools is not None and form is not None and asks_for_form(request):
        return adapter.grammars.compile(tools.grammar_source(form[0]), "tools")
    if asked is not None or tools is None:
        return asked
    try:
        call = adapter.grammars.compile(tools.grammar_source(), "tools")
    except InvalidOption:  # functions that are too many for one grammar: their calls are read as they come
        return None
    names = frozenset(function.name for function in tools.functions)
    return CallGrammar(call, tools.parser, names, adapter.grammars, is_single=not tools.is_parallel)


def _to_delta(update: CallUpdate) -> ToolCallDelta:
    """News of a call; it gets its id with its name."""
    if update.name is None:
        return ToolCallDelta(index=update.index, function=FunctionCallDelta(arguments=update.arguments))
    function = FunctionCallDelta(name=update.name, arguments=update.arguments)
    return ToolCallDelta(index=update.index, id=f"call_{uuid4().hex[:24]}", type="function", function=function)


def _join_choices(pieces: Sequence[ChunkChoice]) -> ChatChoice:
    """One answer from all its pieces."""
    text = "".join(one.delta.content or "" for one in pieces)
    thoughts = "".join(one.delta.reasoning_content or "" for one in pieces)
    calls: dict[int, ToolCall] = {}
    for delta in (delta for one in pieces for delta in one.delta.tool_calls or ()):
        if delta.id is not None:
            begun = FunctionCall(name=delta.function.name or "", arguments="")
            calls[delta.index] = ToolCall(id=delta.id, function=begun)
        calls[delta.index].function.arguments += delta.function.arguments or ""
    has_text = any(one.delta.content is not None for one in pieces) and (text or not (calls or thoughts))
    content, said = text if has_text else None, list(calls.values()) or None
    scores = [one.logprobs.content for one in pieces if one.logprobs is not None]
    return ChatChoice(
        index=pieces[-1].index,
        message=Reply(content=content, reasoning_content=thoughts or None, tool_calls=said),
        finish_reason=pieces[-1].finish_reason,
        stop_reason=pieces[-1].stop_reason,
        logprobs=ChatLogprobs(content=[*chain.from_iterable(scores)]) if scores else None,
        captured=join_captured(captured for one in pieces for captured in one.captured or ()) or None,
    )


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
