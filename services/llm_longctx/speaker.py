"""A loaded language model and what it needs to answer requests: tokenizer, engine, limits.

Turns the protocol's options into what the engine understands and refuses what is not served. Knows nothing about the
forms of answers or about where models come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.llm_longctx.engine import Sampling, Scheduler
from services.llm_longctx.errors import ContextLengthExceeded
from services.llm_longctx.generation import Prompt
from services.llm_longctx.longctx import policy_for
from shared.api.text import ChatMessage, GenerationOptions
from shared.errors import InvalidOption, Malformed
from shared.lm.head_plan import HeadPlan
from shared.lm.tokenizer import Tokenizer

__all__ = ["Speaker", "check", "samplings"]

UNSAID = 256
"""Tokens of an answer that a memory budget foresees where the request sets no limit."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """One model, ready to speak.

    Attributes:
        name: What callers call it.
        fingerprint: Names weights and dtype: the same fingerprint and seed give the same answer.
        context: Longest prompt and answer together, in tokens.
        vocab: Token ids that the model knows are below this.
        plans: Head plans of this model by name.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    scheduler: Scheduler
    context: int
    vocab: int
    plans: Mapping[str, HeadPlan] = field(default_factory=dict)

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

    def prompt(self, ids: Sequence[int], wanted: int | None, options: GenerationOptions, field: str) -> Prompt:
        """A prompt whose answer fits the context; `wanted` tokens, or as many as fit.

        Raises:
            ContextLengthExceeded: The prompt alone does not fit.
            InvalidOption: A token id that the model does not know, or an attention method that can't serve this.
        """
        if len(ids) > self.context:
            detail = f"The prompt has {len(ids):,} tokens; the context of {self.name} is {self.context:,} tokens."
            raise ContextLengthExceeded(detail, hint="Shorten the prompt.", field=field)
        if any(i >= self.vocab for i in ids):
            detail = f"The prompt holds token {max(ids)}; this model's ids are below {self.vocab}."
            raise InvalidOption(detail, field=field)
        self._known_tokens(options)
        room = self.context - len(ids)
        most, asked = room if wanted is None else min(wanted, room), options.longctx
        policy = policy_for(
            self.scheduler.engine, asked, self.plans, len(ids), min(most, UNSAID) if wanted is None else most
        )
        scheduler = self.scheduler
        fallback = None if scheduler.watch is None else scheduler.watch.breach(policy.method.name)
        return Prompt(
            ids=ids, max_tokens=most, stops=options.stop or (),
            policy=policy if fallback is None else scheduler.engine.dense, fallback=fallback,
            boundaries=None if asked is None else asked.boundaries,
            priority=-1 if asked is not None and asked.priority == "batch" else 0,
        )  # fmt: skip

    def _known_tokens(self, options: GenerationOptions) -> None:
        for token in options.logit_bias or {}:
            if token >= self.vocab:
                detail = f"logit_bias names token {token}; this model's ids are below {self.vocab}."
                raise InvalidOption(detail, field="logit_bias")


def samplings(options: GenerationOptions) -> list[Sampling]:
    """How each of the `n` answers is drawn; a seed makes them repeatable, and different from each other."""
    return [
        Sampling(
            temperature=options.temperature, top_p=options.top_p, top_k=options.top_k, min_p=options.min_p,
            seed=None if options.seed is None else options.seed + i, presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty, repetition_penalty=options.repetition_penalty,
            logit_bias=options.logit_bias or {},
        )
        for i in range(options.n)
    ]  # fmt: skip


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
