"""Constrained decoding: automata over bytes that say what an answer may contain, and how tokens walk them.

Knows bytes and token ids; knows nothing about models or sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.llm_longctx.serving.grammars.json_grammar import JsonGrammar
from shared.errors import InvalidOption
from shared.lm.tokenizer import Tokenizer

__all__ = ["Automaton", "ChoiceGrammar", "TokenGrammar", "build_grammar", "require_feasible"]

MAX_CHOICES = 256
"""Texts of which one is answered."""


class Automaton(Protocol):
    """A state; immutable."""

    def feed(self, byte: int) -> Automaton | None:
        """The state after one more byte, or None where it may not come."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        ...

    @property
    def final(self) -> bool:
        """Whether nothing may follow."""
        ...


@dataclass(frozen=True, slots=True)
class ChoiceGrammar:
    """One of several texts: what is left of those that are still possible."""

    left: frozenset[bytes]

    def feed(self, byte: int) -> ChoiceGrammar | None:
        """See `Automaton`."""
        left = frozenset(text[1:] for text in self.left if text[:1] == bytes([byte]))
        return ChoiceGrammar(left) if left else None

    @property
    def complete(self) -> bool:
        """See `Automaton`."""
        return b"" in self.left

    @property
    def final(self) -> bool:
        """See `Automaton`."""
        return self.left == {b""}


class TokenGrammar:
    """An automaton as the engine's sampler asks it: by tokens."""

    def __init__(self, tokenizer: Tokenizer, state: Automaton) -> None:
        self._tokenizer = tokenizer
        self._state = state
        self._ends = sorted(tokenizer.eos)

    def allows(self, token: int) -> bool:
        """Whether the token may come next."""
        if token in self._tokenizer.eos:
            return self._state.complete
        return self._after(token) is not None

    def advance(self, token: int) -> None:
        """The token came."""
        if token not in self._tokenizer.eos and (after := self._after(token)) is not None:
            self._state = after

    @property
    def closing(self) -> Sequence[int]:
        """End tokens, where nothing else may come."""
        return self._ends if self._state.final else ()

    def _after(self, token: int) -> Automaton | None:
        spelled = self._tokenizer.token_bytes(token)
        state: Automaton | None = self._state if spelled and not self._tokenizer.is_special(token) else None
        for byte in spelled:
            if state is None:
                return None
            state = state.feed(byte)
        return state


def build_grammar(response_format: Mapping[str, Any] | None) -> Automaton | None:
    """The grammar of a `response_format`; None allows everything.

    Raises:
        InvalidOption: A kind that is not served, or choices that are none.
    """
    given = response_format or {}
    match given.get("type", "text"):
        case "text":
            return None
        case "json_object":
            return JsonGrammar()
        case "choice":
            texts = given.get("choices")
            if not isinstance(texts, list) or not 0 < len(texts) <= MAX_CHOICES or not all(_text(t) for t in texts):
                detail = f"response_format choice needs choices: 1 to {MAX_CHOICES} texts."
                raise InvalidOption(detail, field="response_format")
            return ChoiceGrammar(frozenset(text.encode() for text in texts))
    detail = f"response_format {given.get('type')!r} is not served; text, json_object and choice are."
    raise InvalidOption(
        detail, hint="Describe the schema in the prompt and ask for json_object.", field="response_format"
    )


def require_feasible(grammar: Automaton, tokenizer: Tokenizer, vocab: int) -> None:
    """Refuse a format that no token of a model begins: words have a space before them, and small models few words.

    Raises:
        InvalidOption: No token may come first.
    """
    tokens = TokenGrammar(tokenizer, grammar)
    if not any(tokens.allows(token) for token in range(vocab)):
        detail = "No token of this model begins an answer of that format."
        raise InvalidOption(
            detail, hint="Ask another model, or for texts that its tokens spell.", field="response_format"
        )


def _text(given: object) -> bool:
    return isinstance(given, str) and bool(given) and given.isprintable()
