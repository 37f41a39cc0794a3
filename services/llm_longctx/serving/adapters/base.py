"""A loaded language model and what any of them needs to answer requests: tokenizer, scheduler, limits.

Turns the protocol's options into what a scheduler understands and refuses what is not served. How a prompt is read
(by a decoder under an attention method, or by a session of a model with a memory) is its subclasses'. Knows nothing
about the forms of answers or about where models come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.llm_longctx.api.errors import ContextLengthExceeded
from services.llm_longctx.engine import GenerationRequest, Sampling, Scheduler
from services.llm_longctx.serving.request_state import Brought
from shared.api.text import ChatMessage, GenerationOptions, LongctxAnswer, LongctxUsage, Usage
from shared.errors import InvalidOption, Malformed, in_field
from shared.lm.tokenizer import Tokenizer

__all__ = ["TextModelAdapter", "check", "priority_of", "samplings", "usage_of"]


@dataclass(frozen=True)
class TextModelAdapter(ABC):
    """One model, ready to speak.

    Attributes:
        name: What callers call it.
        fingerprint: Names weights and dtype: the same fingerprint and seed give the same answer.
        context: Longest prompt and answer together, in tokens.
        vocab: Token ids that the model knows are below this.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    scheduler: Scheduler[Any]
    context: int
    vocab: int

    def read(self, text: str, field: str, *, special: bool = True) -> list[int]:
        """Tokens of a text, refused before the tokenizer sees it where it can't fit.

        Raises:
            ContextLengthExceeded: More tokens than the context.
            Malformed: The text holds half a surrogate pair.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            detail = f"The text holds {text[error.start]!r}, which is no character."
            raise Malformed(detail, field=field) from error
        if size > self.context * self.tokenizer.longest:
            detail = f"The prompt has {size:,} bytes, and the context of {self.name} is {self.context:,} tokens."
            raise ContextLengthExceeded(detail, hint="Shorten the prompt.", field=field)
        with in_field(field):
            return self.tokenizer.encode(text, special=special)

    def dialogue(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation under the model's template.

        Raises:
            InvalidOption: A part that is not text, or messages that the template refuses.
        """
        plain = [
            {"role": "system" if m.role == "developer" else m.role, "content": _text(m, place)}
            for place, m in enumerate(messages)
        ]
        return self.tokenizer.chat(plain, add_generation_prompt=add_generation_prompt)

    def build_request(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        *,
        text: str | None = None,
        brought: Brought | None = None,
    ) -> GenerationRequest:
        """A request whose answer fits the context; `wanted` tokens, or as many as fit.

        Args:
            ids: The tokens.
            wanted: Longest answer, or None.
            options: The request.
            field: Where the prompt was in it.
            text: What the tokens were cut from, where it was a text.
            brought: What was fetched for the request.

        Raises:
            ContextLengthExceeded: The prompt alone does not fit.
            InvalidOption: A token id that the model does not know, or options that can't be served.
        """
        self.fits(ids, field)
        if any(i >= self.vocab for i in ids):
            detail = f"The prompt holds token {max(ids)}; this model's ids are below {self.vocab}."
            raise InvalidOption(detail, field=field)
        self._known_tokens(options)
        return self.prepare(ids, wanted, options, field, text, brought)

    def fits(self, ids: Sequence[int], field: str) -> None:
        """Refuse what is too long.

        Raises:
            ContextLengthExceeded: There are more tokens than the context.
        """
        if len(ids) > self.context:
            detail = f"The prompt has {len(ids):,} tokens; the context of {self.name} is {self.context:,} tokens."
            raise ContextLengthExceeded(detail, hint="Shorten the prompt.", field=field)

    @abstractmethod
    def prepare(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> GenerationRequest:
        """The engine request for a prompt of known tokens; arguments as in `build_request`.

        Raises:
            InvalidOption: Options that can't be served.
        """

    @abstractmethod
    def usage(self, requests: Sequence[GenerationRequest]) -> LongctxUsage:
        """What the prompts of one request cost together."""

    def extra_payload(self, _request: GenerationRequest) -> LongctxAnswer | None:
        """What there is to say beside the answers to a request, once all of them are over."""
        return None

    def _known_tokens(self, options: GenerationOptions) -> None:
        for token in options.logit_bias or {}:
            if token >= self.vocab:
                detail = f"logit_bias names token {token}; this model's ids are below {self.vocab}."
                raise InvalidOption(detail, field="logit_bias")


def samplings(options: GenerationOptions) -> list[Sampling]:
    """How each of the `n` answers is drawn; a seed makes them repeatable, and different from each other."""
    return [
        Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            seed=None if options.seed is None else options.seed + i,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            repetition_penalty=options.repetition_penalty,
            logit_bias=options.logit_bias or {},
        )
        for i in range(options.n)
    ]


def priority_of(options: GenerationOptions) -> int:
    """Class of a request in the queue; higher ones are served first."""
    return -1 if options.longctx is not None and options.longctx.priority == "batch" else 0


def usage_of(requests: Sequence[GenerationRequest], produced: int, adapter: TextModelAdapter) -> Usage:
    """What all prompts of one request cost together; `produced` are tokens of its answers."""
    read = sum(len(request.prompt_ids) for request in requests)
    longctx = adapter.usage(requests)
    return Usage(prompt_tokens=read, completion_tokens=produced, total_tokens=read + produced, longctx=longctx)


def check(options: GenerationOptions) -> None:
    """Refuse what is well formed but not served.

    Raises:
        InvalidOption: An unknown field under `strict`, or tools.
    """
    unknown = sorted(options.model_extra or {})
    if options.strict and unknown:
        detail = f"There is no field {unknown[0]!r}."
        raise InvalidOption(detail, hint="Leave it out, or leave out strict.", field=unknown[0])
    for name in ("tools", "functions"):
        if (options.model_extra or {}).get(name):
            detail = "These models call no tools."
            raise InvalidOption(detail, hint=f"Leave {name} out.", field=name)


def _text(message: ChatMessage, place: int) -> str:
    """The text of a message, its parts joined."""
    if not isinstance(message.content, list):
        return message.content or ""
    for part in message.content:
        if part.type != "text":
            detail = f"messages[{place}] holds a part of type {part.type!r}; only text is understood."
            raise InvalidOption(detail, field=f"messages[{place}].content")
        if part.text is None:
            detail = f"A text part of messages[{place}] has no text."
            raise Malformed(detail, field=f"messages[{place}].content")
    return "".join(part.text or "" for part in message.content)
