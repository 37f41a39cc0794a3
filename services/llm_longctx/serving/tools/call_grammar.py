"""Call grammar: an answer that is free until it begins a tool call, and under the tools' grammar until that call ends.

While it is free its tokens are drawn as without tools, but for those that would begin a call with what none may hold.
"""

from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler, TokenGrammar
from services.llm_longctx.serving.tools.tool_parser import ToolParser

_KEPT = 256
"""Characters of free text in which a call may be beginning: longer than any opening with a function's name."""

_PROSE = "."
"""Stands for text in which no call is beginning."""


class CallGrammar:
    """One answer, as the engine's sampler asks it.

    Args:
        call: The grammar of one call, before its first token.
        parser: The form of calls, which says where one begins.
        names: The functions.
        compiler: Knows the model's tokens.
        is_single: Whether the answer ends with its first call; else text may follow.
    """

    def __init__(
        self,
        call: TokenGrammar,
        parser: type[ToolParser],
        names: frozenset[str],
        compiler: GrammarCompiler,
        *,
        is_single: bool = False,
    ) -> None:
        self._start, self._parser, self._names, self._compiler = call, parser, names, compiler
        self._is_single, self.is_finished = is_single, False
        self._texts = compiler.texts
        compiler.spell(parser.last_sign)  # builds its tables here, not in the scheduler's thread
        self._text = ""  # what came since the answer, or the last call, ended
        self._call: TokenGrammar | None = None  # the call that is being written

    def mask(self) -> Tensor | None:
        """Which tokens may come next, bool [V]; None for all."""
        if self._call is not None:
            return self._call.mask()
        if not self._parser.may_open(self._text):
            return None
        sign = self._parser.last_sign
        refused = [i for i, text in enumerate(self._texts) if sign in text and not self._is_allowed(text)]
        if not refused:
            return None
        mask = torch.ones(len(self._texts), dtype=torch.bool, device="cpu")
        mask[refused] = False
        return mask

    def advance(self, token: int) -> None:
        """The token came."""
        if self._call is not None:
            self._call.advance(token)
        else:
            self._text += self._texts[token]
            self._call = self._open()
            if len(self._text) > _KEPT:
                self._text = _PROSE if self._parser.is_first else self._text[-_KEPT:]
        if self._call is not None and self._call.is_accepting:
            self._call, self._text, self.is_finished = None, "", self._is_single

    def fork(self) -> Self:
        """The same, for another answer that has not begun."""
        return type(self)(self._start, self._parser, self._names, self._compiler, is_single=self._is_single)

    def _is_allowed(self, text: str) -> bool:
        """Whether a token, if it begins a call, begins a valid one."""
        opened = self._parser.find_opening(self._text + text, self._names)
        return opened is None or self._spell(*opened) is not None

    def _open(self) -> TokenGrammar | None:
        """The grammar of the call that the text has begun, behind what came of it."""
        if (opened := self._parser.find_opening(self._text, self._names)) is None:
            return None
        self._text = _PROSE
        if (tokens := self._spell(*opened)) is None:
            return None
        call = self._start.fork()
        for token in tokens:
            call.advance(token)
        return call

    def _spell(self, head: str, rest: str) -> list[int] | None:
        """Tokens of a call's beginning; None where no call begins like that."""
        tokens = self._compiler.spell(head + rest)
        return tokens if tokens is not None and self._start.accepts(tokens) else None
