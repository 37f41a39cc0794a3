"""Token ranges: which tokens of a sequence an edit or a capture is for, prompt and answer counted through."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from fovea.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Tokens `begin` … `end`-1, or those of them that are `listed` (ascending)."""

    begin: int = 0
    end: int = sys.maxsize
    listed: tuple[int, ...] | None = None

    @classmethod
    def of(cls, where: Literal["all", "prompt", "decode"] | Iterable[int], prompt: int, end: int) -> Self:
        """The tokens that a request means, given the length of its prompt; negative ones count back from its end.

        Args:
            where: Which, in words or as positions.
            prompt: Tokens of the prompt.
            end: Tokens of the prompt and of the answer that are ever fed.

        Raises:
            InvalidOption: A position before the first token, or at or behind `end`.
        """
        if where == "all":
            return cls()
        if where == "prompt":
            return cls(0, prompt)
        if where == "decode":
            return cls(prompt)
        listed = sorted({position + prompt if position < 0 else position for position in map(int, where)})
        if listed[0] < 0 or listed[-1] >= end:
            wrong = listed[0] - prompt if listed[0] < 0 else listed[-1]
            detail = f"There will be no token {wrong}: the prompt has {prompt} tokens, and {end - prompt} of the answer"
            detail += f" are fed at most (its last one never is), so positions are −{prompt}…{end - 1}."
            raise InvalidOption(detail, hint="Choose another position, or a larger max_tokens.", field="positions")
        return cls(listed[0], listed[-1] + 1, tuple(listed))

    def within(self, begin: int, end: int) -> list[int]:
        """Tokens in [begin, end) that match the selector."""
        if self.listed is not None:
            return [position for position in self.listed if begin <= position < end]
        return list(range(max(begin, self.begin), min(end, self.end)))

    def __contains__(self, position: int) -> bool:
        """Whether a token is meant."""
        return self.begin <= position < self.end and (self.listed is None or position in self.listed)
