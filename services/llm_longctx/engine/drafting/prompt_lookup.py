"""Prompt lookup: drafts an answer's next tokens from what followed the same few tokens before, in prompt or answer.

Drafts are verified by the decoder, so they change no answer; a meter stops them where they take longer than they save.
Source: A. Saxena, Prompt Lookup Decoding, 2023; verification as in Leviathan et al., arXiv:2211.17192. Knows token ids
and seconds; knows nothing about decoders.
"""

from collections.abc import Sequence

_NGRAM = 3
"""Tokens that must agree before a draft is made."""

_PROBE_EVERY = 64
"""Steps after which a form of step that is not used is measured again."""

_KEPT = 0.8
"""Weight of what was measured before."""


class PromptLookup:
    """Where each n-gram of a text was last followed by something."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._read = 0

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """So many tokens that followed the last occurrence of the text's end; none where there is none.

        Args:
            ids: The whole text, each time the same one continued.
            most: Length of the draft.
        """
        # The text's end itself is not indexed yet: it has no successor.
        for end in range(max(self._read, _NGRAM), len(ids)):
            self._ends[tuple(ids[end - _NGRAM : end])] = end
        self._read = len(ids)
        if (at := self._ends.get(tuple(ids[-_NGRAM:]))) is None or len(ids) < _NGRAM:
            return []
        draft: list[int] = []
        while len(draft) < most:  # behind the text's end the draft goes on with itself: what repeats goes on repeating
            here = at + len(draft)
            draft.append(ids[here] if here < len(ids) else draft[here - len(ids)])
        return draft


class DraftMeter:
    """Whether drafts pay: seconds per token with and without them, as this machine and this text make them."""

    def __init__(self) -> None:
        self._plain = self._drafted = 0.0
        self._since_plain = self._since_drafted = 0

    def pays(self) -> bool:
        """Whether to draft in the next step; now and then the other way, to know what it costs."""
        self._since_plain += 1
        self._since_drafted += 1
        if not self._plain or self._since_plain > _PROBE_EVERY:
            return False
        return not self._drafted or self._since_drafted > _PROBE_EVERY or self._drafted < self._plain

    def add_plain(self, seconds: float) -> None:
        """A step of one token took so long."""
        self._plain, self._since_plain = _mix(self._plain, seconds), 0

    def add_drafted(self, seconds: float, tokens: int) -> None:
        """A step with a draft took so long and came to so many tokens, one at least."""
        self._drafted, self._since_drafted = _mix(self._drafted, seconds / tokens), 0


def _mix(before: float, now: float) -> float:
    return now if not before else _KEPT * before + (1 - _KEPT) * now
