"""Constrained decoding: grammars compiled by llguidance for one model's tokens, and how an answer walks them.

Knows grammar sources and token ids; knows nothing about models or sampling.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.serving.grammars.sources import describe_error
from shared.lm.tokenizer import Tokenizer

_LIMITS = LLParserLimits(max_lexer_states=20_000, max_grammar_size=100_000)
"""A grammar is refused, or an answer ends, where it would take more: about 40 MB, and milliseconds per token."""

_LONGEST = 16
"""Bytes of the longest token that spells a given text."""

_CACHED = 32
"""Compiled grammars that a model remembers."""


class TokenGrammar:
    """One answer under a grammar, as the engine's sampler asks it."""

    def __init__(self, matcher: LLMatcher, vocab: int, field: str) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._field = field

    def mask(self) -> Tensor:
        """Which tokens may come next: bool [V]; end tokens where the answer may be over.

        Raises InvalidOption: None may, or the grammar became too complex on the way.
        """
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        mask = bias[: self._vocab] != 0
        if self._matcher.is_stopped() or not bool(mask.any()):
            raise _dead_end(self._matcher.get_error(), self._field)
        return mask

    def advance(self, token: int) -> None:
        """The token came."""
        self._matcher.consume_token(token)

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def is_accepting(self) -> bool:
        """Whether what came so far is whole."""
        return bool(self._matcher.is_accepting())

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether tokens may come next, one after the other."""
        return int(self._matcher.validate_tokens(list(tokens))) == len(tokens)

    def fork(self) -> Self:
        """The same state, for another answer."""
        return type(self)(self._matcher.deep_copy(), self._vocab, self._field)


class GrammarCompiler:
    """Compiles grammars for the tokens of one model, and remembers the last ones."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        """Build the trie of the vocabulary, which takes about half a second for 50,000 tokens."""
        self._vocab = vocab
        self._tokenizer = tokenizer
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, vocab))
        self._tokens = LLTokenizer(wrapper, n_vocab=vocab + 1, eos_token=[*sorted(tokenizer.eos), vocab])
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token; pieces of characters have replacements."""
        return [self._tokenizer.token_bytes(i).decode("utf8", "replace") for i in range(self._vocab)]

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        hidden = self._tokenizer.special | self._tokenizer.eos
        return {self._tokenizer.token_bytes(i): i for i in range(self._vocab) if i not in hidden}

    def spell(self, text: str) -> list[int] | None:
        """Tokens of a text, as llguidance reads them back; None where there are none for a piece of it."""
        raw, found = text.encode(), list[int]()
        while raw:
            size = next((n for n in range(min(len(raw), _LONGEST), 0, -1) if raw[:n] in self._ids), 0)
            if not size:
                return None
            found.append(self._ids[raw[:size]])
            raw = raw[size:]
        return found

    def compile(self, source: str, field: str) -> TokenGrammar:
        """A grammar, ready for an answer to begin.

        Args:
            source: It, in llguidance's Lark.
            field: The request's field that holds it.

        Raises InvalidOption: It is not understood, too complex, or accepts nothing that this model's tokens can spell.
        """
        with self._lock:
            known = self._cache.get(source)
            if known is not None:
                self._cache.move_to_end(source)
                return TokenGrammar(known.deep_copy(), self._vocab, field)
        matcher = LLMatcher(self._tokens, source, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            detail = f"{field} can't be enforced: {describe_error(matcher.get_error())}."
            few = "Offer fewer tools, or describe their parameters more simply."
            hint = few if field == "tools" else "Leave out what is not supported, or check it yourself."
            raise InvalidOption(detail, hint=hint, field=field)
        TokenGrammar(matcher.deep_copy(), self._vocab, field).mask()
        with self._lock:
            self._cache[source] = matcher
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return TokenGrammar(matcher.deep_copy(), self._vocab, field)


class _Vocabulary:
    """A tokenizer as llguidance reads it. A last token of its own ends texts where the model has no end token."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = vocab, None
        self.tokens = [*(tokenizer.token_bytes(i) for i in range(vocab)), b"<end>"]
        self.special_token_ids = [*sorted(tokenizer.special | tokenizer.eos), vocab]

    def __call__(self, text: bytes | str) -> list[int]:
        """Never needed: nothing is forced."""
        return []


def _dead_end(error: str, field: str) -> InvalidOption:
    if "TooComplex" in error:
        detail, hint = f"The grammar of {field} became too complex.", "Simplify it."
    else:
        detail = f"No token of this model goes on with an answer that {field} allows."
        hint = "Ask another model, or for texts that its tokens spell."
    return InvalidOption(detail, hint=hint, field=field)
