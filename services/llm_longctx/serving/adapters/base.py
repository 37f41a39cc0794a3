"""Base of text-model adapters: what every loaded language model needs to answer requests: tokenizer, scheduler, limits.

Turns the protocol's options into engine requests and refuses options that are not served. Subclasses know how a prompt
is read: by a decoder under an attention method, or by a session of a model with a memory. Knows nothing about the forms
of answers, or about where models come from.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from fovea.api.longctx import LongctxAnswer, LongctxUsage
from fovea.api.sampling import SamplingOptions
from fovea.api.text import ChatMessage, GenerationOptions, PromptTokensDetails, Usage
from fovea.errors import InvalidOption, Malformed, in_field
from services.llm_longctx.api.errors import ContextLengthExceeded
from services.llm_longctx.engine import GenerationRequest, Sampling, Scheduler
from services.llm_longctx.serving.chat_template import END_MARK, TemplateOptions, cut_at_mark
from services.llm_longctx.serving.grammars.formats import find_grammar_source
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler, TokenGrammar
from services.llm_longctx.serving.grammars.token_rules import OpeningGrammar, TokenRules
from services.llm_longctx.serving.request_options import truncate_prompt
from services.llm_longctx.serving.tools.tool_use import ToolUse, has_tools, spell_message, to_plain
from shared.lm.tokenizer import Tokenizer
from shared.registry import SamplingDefaults

_PLAIN_TEMPLATE = TemplateOptions()


class RequestState(Protocol):
    """State of one request; the adapter of its model knows the class. A plug-in loads it (`api.state_loading`)."""

    async def commit(self, answer: str) -> None:
        """Store what the request changed, with its whole answer (JSON), before the end of the answer is sent.

        Raises Conflict: Another request has written since.
        """


@dataclass(frozen=True)
class TextModelAdapter(ABC):
    """Adapter of one loaded language model.

    Attributes:
        name: Its served name.
        fingerprint: Identifies weights and dtype: the same fingerprint and seed give the same answer.
        context: Longest prompt and answer together, in tokens.
        vocab: Token ids are below this.
        sampling: How tokens are drawn where a request does not say.
        takes_templates: Whether requests may bring a chat template.
        compilers: Its grammar compiler by vocabulary, once there is one: the same for all tenants.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    scheduler: Scheduler[Any]
    context: int
    vocab: int
    sampling: SamplingDefaults = dataclasses.field(default_factory=SamplingDefaults, kw_only=True)
    takes_templates: bool = dataclasses.field(default=False, kw_only=True)
    compilers: dict[int, GrammarCompiler] = dataclasses.field(default_factory=dict, kw_only=True, compare=False)

    def tokenize(self, text: str, field: str, *, special: bool = True) -> list[int]:
        """Tokenize a text; one that can't fit is refused before the tokenizer sees it.

        Raises ContextLengthExceeded: more tokens than the context; Malformed: the text holds half a surrogate pair.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise Malformed(f"The text holds {text[error.start]!r}, which is no character.", field=field) from error
        if size > self.context * self.tokenizer.longest:
            detail = f"The prompt has {size:,} bytes, and the context of {self.name} is {self.context:,} tokens."
            raise ContextLengthExceeded(detail, hint="Shorten the prompt.", field=field)
        with in_field(field):
            return self.tokenizer.encode(text, special=special)

    def of_tenant(self, tenant: str, model: str | None = None) -> Self:
        """The adapter for requests of a tenant to a model of that name; most know neither tenants nor other names."""
        return self

    @property
    def served_as(self) -> str:
        """The name in answers."""
        return self.name

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        options: TemplateOptions = _PLAIN_TEMPLATE,
        *,
        tools: ToolUse | None = None,
    ) -> str:
        """Render a conversation with a chat template; tools as it takes them, or as instructions.

        Raises InvalidOption: A part that is not text, or messages that the template refuses.
        """
        plain = [to_plain(message, _join_parts(message, index)) for index, message in enumerate(messages)]
        template = options.source or self.tokenizer.chat_template
        if not has_tools(template):
            plain = [spell_message(message) for message in plain] if tools is None else tools.instruct(plain)
        if options.is_continued:
            plain[-1]["content"] = f"{plain[-1]['content']}{END_MARK}"
        text = self.tokenizer.chat(
            plain,
            add_generation_prompt=options.add_generation_prompt,
            tools=tools.describe() if tools is not None and tools.is_native else None,
            template=options.source,
            names=options.names,
        )
        return cut_at_mark(text) if options.is_continued else text

    def build_request(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: GenerationOptions,
        field: str,
        *,
        text: str | None = None,
        state: RequestState | None = None,
    ) -> GenerationRequest:
        """The engine request for a prompt; its answer has `max_tokens` tokens, or as many as fit the context.

        Args:
            ids: The tokens.
            max_tokens: Longest answer, or None.
            options: The request.
            field: Its field that holds the prompt.
            text: The text of the tokens, if the prompt was a text.
            state: The session or document that was loaded for the request.

        Raises:
            ContextLengthExceeded: The prompt alone does not fit.
            InvalidOption: A token id that the model does not know, or options that can't be served.
        """
        if (kept := truncate_prompt(ids, self.context, max_tokens, options)) is not ids:
            ids, text = kept, None
        self.check_length(ids, field)
        if any(i >= self.vocab for i in ids):
            detail = f"The prompt holds token {max(ids)}; this model's ids are below {self.vocab}."
            raise InvalidOption(detail, field=field)
        request = self.prepare(ids, max_tokens, options, field, text, state)
        request.samplings = build_samplings(options, self.sampling)
        own = frozenset[int]() if options.ignore_eos else request.stop_token_ids
        request.stop_token_ids = own | frozenset(options.stop_token_ids or ())
        request.score_prompt = options.prompt_logprobs is not None
        request.top_prompt_logprobs = options.prompt_logprobs or 0
        return request

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles grammars for this model's tokens; made when the first is asked for."""
        if (made := self.compilers.get(self.vocab)) is None:
            made = self.compilers.setdefault(self.vocab, GrammarCompiler(self.tokenizer, self.vocab))
        return made

    def compile_grammar(self, options: GenerationOptions) -> TokenGrammar | None:
        """The grammar that a request asks for; None where its answer is free.

        Raises InvalidOption: It can't be enforced, or no token of this model begins an answer that it allows.
        """
        source = find_grammar_source(options)
        return None if source is None else self.grammars.compile(*source)

    def add_rules(self, grammar: OpeningGrammar | None, options: SamplingOptions) -> OpeningGrammar | None:
        """Answers allowed under a request's rules about tokens, and under a grammar if there is one.

        Raises InvalidOption: They name a token that the model does not know.
        """
        for field in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            for token in getattr(options, field) or ():
                if token >= self.vocab:
                    detail = f"{field} names token {token}; this model's ids are below {self.vocab}."
                    raise InvalidOption(detail, field=field)
        ends = {*(options.stop_token_ids or ()), *(() if options.ignore_eos else self.tokenizer.eos)}
        spelled = (f"{space}{word.lstrip()}" for word in options.bad_words or () for space in ("", " "))
        words = {tuple(self.tokenize(text, "bad_words", special=False)) for text in spelled} - {()}
        return TokenRules.of(
            self.vocab,
            allowed=options.allowed_token_ids,
            words=words,
            ends=[token for token in ends if token < self.vocab],
            min_tokens=options.min_tokens,
            grammar=grammar,
        )

    def check_length(self, ids: Sequence[int], field: str) -> None:
        """Refuse a prompt that is too long. Raises ContextLengthExceeded: There are more tokens than the context."""
        if len(ids) > self.context:
            detail = f"The prompt has {len(ids):,} tokens; the context of {self.name} is {self.context:,} tokens."
            raise ContextLengthExceeded(detail, hint="Shorten the prompt.", field=field)

    @abstractmethod
    def prepare(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        state: RequestState | None,
    ) -> GenerationRequest:
        """Build the engine request of a checked prompt; arguments as in `build_request`.

        Raises InvalidOption: Options that can't be served.
        """

    @abstractmethod
    def usage(self, requests: Sequence[GenerationRequest]) -> LongctxUsage:
        """Joint cost of the prompts of one HTTP request."""

    async def extra_payload(self, request: GenerationRequest) -> LongctxAnswer | None:
        """The `longctx` field of the answer, once all answers to a request are over."""
        return None


def build_samplings(options: GenerationOptions, defaults: SamplingDefaults) -> list[Sampling]:
    """Sampling of each of the `n` answers; a seed makes them repeatable, and different from each other.

    A field that a request leaves out is the model's own.
    """
    given = {name: getattr(options, name) for name in SamplingDefaults.model_fields}
    drawn = {name: getattr(defaults, name) if value is None else value for name, value in given.items()}
    drawn |= {"top_k": max(drawn["top_k"], 0), "temperature": min(drawn["temperature"], 1e30)}  # which float32 holds
    return [
        Sampling(
            **drawn,
            seed=None if options.seed is None else options.seed + i,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=options.logit_bias or {},
        )
        for i in range(options.n)
    ]


def priority_of(options: GenerationOptions) -> int:
    """Priority class of a request; higher ones are served first."""
    return -1 if options.longctx is not None and options.longctx.priority == "batch" else 0


def build_usage(
    requests: Sequence[GenerationRequest], produced: int, adapter: TextModelAdapter, unenforced: Iterable[str] = ()
) -> Usage:
    """Usage of all prompts of one HTTP request; `produced` are tokens of its answers, `unenforced` keywords."""
    read = sum(len(request.prompt_ids) for request in requests)
    longctx = adapter.usage(requests)
    if len(requests) == 1 and len(requests[0].samplings) == 1:
        longctx = longctx.model_copy(update={"context_left": max(adapter.context - read - produced, 0)})
    return Usage(
        prompt_tokens=read,
        completion_tokens=produced,
        total_tokens=read + produced,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=longctx.cached_tokens),
        longctx=longctx,
        unenforced=sorted(set(unenforced)) or None,
    )


def _join_parts(message: ChatMessage, index: int) -> str:
    """The text of a message, its parts joined."""
    if not isinstance(message.content, list):
        return message.content or ""
    for part in message.content:
        if part.type != "text":
            detail = f"messages[{index}] holds a part of type {part.type!r}; only text is understood."
            raise InvalidOption(detail, field=f"messages[{index}].content")
        if part.text is None:
            raise Malformed(f"A text part of messages[{index}] has no text.", field=f"messages[{index}].content")
    return "".join(part.text or "" for part in message.content)
