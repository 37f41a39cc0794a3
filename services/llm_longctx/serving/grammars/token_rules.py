"""Token rules: tokens that an answer may not have, or not yet, whether or not a grammar says what it may be.

To the engine's sampler a rule is a grammar, so that answers without rules cost nothing. Knows token ids; knows no text.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Grammar


class OpeningGrammar(Protocol):
    """Grammar of an answer, before its first token."""

    def fork(self) -> Grammar:
        """The same, for one answer."""


@dataclass(frozen=True)
class TokenRules:
    """Which tokens may come, whatever else holds.

    Attributes:
        barred: Tokens that never may: bool [V], or None.
        words: Tokens in a row that may not come, two or more: those before the last → what may be the last.
        ends: Tokens that end an answer: bool [V].
        min_tokens: Before so many tokens none of `ends` may come.
        grammar: Grammar besides the rules, or None.
    """

    barred: Tensor | None
    words: Mapping[tuple[int, ...], Sequence[int]]
    ends: Tensor
    min_tokens: int
    grammar: OpeningGrammar | None

    @classmethod
    def of(
        cls,
        vocab: int,
        *,
        allowed: Collection[int] | None,
        words: Collection[tuple[int, ...]],
        ends: Collection[int],
        min_tokens: int,
        grammar: OpeningGrammar | None,
    ) -> OpeningGrammar | None:
        """The grammar of an answer under rules; the same where there are none.

        Token ids are below `vocab`. Only those of `allowed` may come, or all; none of `words`, one or more in a row.
        """
        if allowed is None and not words and not min_tokens:
            return grammar
        single = [word[0] for word in words if len(word) == 1]
        barred = None
        if allowed is not None or single:
            barred = torch.full((vocab,), allowed is not None, device="cpu")
            barred[list(allowed or ())] = False
            barred[single] = True
        longer: dict[tuple[int, ...], list[int]] = {}
        for word in words:
            if len(word) > 1:
                longer.setdefault(word[:-1], []).append(word[-1])
        return cls(barred, longer, _mark(ends, vocab), min_tokens, grammar)

    def fork(self) -> Grammar:
        """The rules of one answer."""
        return _RuledAnswer(self)


class _RuledAnswer:
    """One answer under rules, as the engine's sampler asks it."""

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._grammar = None if rules.grammar is None else rules.grammar.fork()
        self._count = 0
        self._sizes = sorted({len(begin) for begin in rules.words})
        self._kept = max(self._sizes, default=0)
        self._tail: list[int] = []  # the last tokens, as many as the longest word needs

    def mask(self) -> Tensor | None:
        """Which tokens may come next, bool [V]; None for all. Raises InvalidOption: None may."""
        inner = None if self._grammar is None else self._grammar.mask()
        barred = self._find_barred()
        if self._count < self._rules.min_tokens:
            late = self._rules.ends if barred is None else self._rules.ends | barred
            if inner is None or bool((inner & ~late).any()):
                barred = late  # where the grammar lets nothing but the end follow, the answer ends early
        if barred is None:
            return inner
        allowed = ~barred if inner is None else inner & ~barred
        if not bool(allowed.any()):
            detail = (
                "No token may follow: bad_words, allowed_token_ids, min_tokens and the form of the answer leave none."
            )
            raise InvalidOption(detail, hint="Bar less, or allow more tokens.", field="bad_words")
        return allowed

    def advance(self, token: int) -> None:
        """The token came."""
        self._count += 1
        if self._kept:
            self._tail = [*self._tail, token][-self._kept :]
        if self._grammar is not None:
            self._grammar.advance(token)

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._grammar is not None and self._grammar.is_finished

    def _find_barred(self) -> Tensor | None:
        last = [token for n in self._sizes for token in self._rules.words.get(tuple(self._tail[-n:]), ())]
        if not last:
            return self._rules.barred
        barred = torch.zeros_like(self._rules.ends) if self._rules.barred is None else self._rules.barred.clone()
        barred[last] = True
        return barred


def _mark(ids: Collection[int], vocab: int) -> Tensor:
    marked = torch.zeros(vocab, dtype=torch.bool, device="cpu")
    marked[list(ids)] = True
    return marked
