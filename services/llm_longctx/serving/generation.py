"""Between the engine's tokens and the protocol's text: one `Generation` per request, one `_Answer` per choice.

Tokens become characters, stop texts end answers, log-probabilities wait for the text they belong to. Knows nothing
about the protocol's forms.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.llm_longctx.engine import Choice, Facts, FinishReason, Grammar, Order, Sampling, Token
from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.stream import Stream
from services.llm_longctx.engine.turns import Turns
from services.llm_longctx.serving.grammars import Automaton, TokenGrammar
from services.llm_longctx.serving.stop_strings import Stops
from shared.api.text import LongctxAnswer
from shared.errors import FoveaError
from shared.lm.tokenizer import Detokenizer, Tokenizer
from shared.registry import CallContext

__all__ = ["Generation", "OutputChunk", "Prompt", "StreamedToken"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and how its answers end.

    Attributes:
        ids: Tokens to go on from.
        max_tokens: Longest answer.
        stops: Texts that end an answer.
        top: Log-probabilities wanted, or None; see `Request.top`.
        policy: The attention method; None takes the engine's.
        wanted: The method that was asked for, where dense serves in its place.
        fallback: Why it does, or None.
        boundaries: Chunk borders for methods that would predict them.
        priority: Higher classes are served first.
        echo: Whether the prompt is part of the answer.
        scored_from: With `echo` and `top`: log-probabilities before this token are not told.
        hidden: Tokens at the prompt's beginning that the caller did not write and an echo does not show.
        opens: See `Order.opens`.
        keeps: See `Order.keeps`.
        most_bytes: See `Order.most_bytes`.
        told: What there is to tell beside the answer, asked once when all of it has been produced.
    """

    ids: Sequence[int]
    max_tokens: int
    stops: Sequence[str] = ()
    top: int | None = None
    policy: Policy | None = None
    wanted: Policy | None = None
    fallback: str | None = None
    boundaries: Sequence[int] | None = None
    priority: int = 0
    echo: bool = False
    scored_from: int = 0
    hidden: int = 0
    opens: Callable[[], Stream] | None = None
    keeps: Callable[[Stream, Sequence[int]], None] | None = None
    most_bytes: int = 0
    told: Callable[[], LongctxAnswer | None] = lambda: None


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A token of the shown text and where it begins in it, in characters."""

    token: Token
    offset: int


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """What is new in one answer: text, its tokens where log-probabilities are wanted, and the end with its reason.

    Attributes:
        index: Which answer.
        produced: Tokens made for this answer, told with the end.
    """

    index: int
    text: str = ""
    tokens: tuple[StreamedToken, ...] = ()
    reason: FinishReason | None = None
    produced: int = 0


class Generation:
    """Answers being produced for one or more prompts; iterate over their pieces as they come."""

    def __init__(self, scheduler: Turns[Any], tokenizer: Tokenizer, run: CallContext) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._run = run
        self._news: queue.SimpleQueue[OutputChunk | FoveaError] = queue.SimpleQueue()
        self.orders: list[Order] = []
        self._open = 0

    def begin(self, prompt: Prompt, samplings: Sequence[Sampling], grammar: Automaton | None = None) -> None:
        """Ask for one answer per sampling; a grammar says what they may say.

        Raises:
            QueueFull: Too many requests wait.
        """
        answers = [_Answer(self._open + i, prompt, self._tokenizer, self._news) for i in range(len(samplings))]
        order = Order(
            ids=prompt.ids,
            choices=[Choice(s, a, self._grammar(grammar)) for s, a in zip(samplings, answers, strict=True)],
            max_tokens=prompt.max_tokens,
            policy=prompt.policy,
            wanted=prompt.wanted,
            boundaries=prompt.boundaries,
            priority=prompt.priority,
            ends=self._tokenizer.eos,
            top=prompt.top,
            score_prompt=prompt.echo and prompt.top is not None,
            score_from=prompt.scored_from,
            run=self._run,
            facts=Facts(fallback=prompt.fallback),
            opens=prompt.opens,
            keeps=prompt.keeps,
            most_bytes=prompt.most_bytes,
        )
        self._open += len(answers)
        self.orders.append(order)
        try:
            self._scheduler.submit(order)
        except FoveaError:
            self.drop()
            raise

    def __iter__(self) -> Iterator[OutputChunk]:
        """Pieces of all answers until each has ended; leaving early drops what is still being produced.

        Raises:
            FoveaError: An answer failed: cancelled, too late, or our fault.
        """
        try:
            while self._open:
                piece = self._news.get()
                if isinstance(piece, FoveaError):
                    raise piece
                self._open -= piece.reason is not None
                yield piece
        finally:
            self.drop()

    def _grammar(self, automaton: Automaton | None) -> Grammar | None:
        return None if automaton is None else TokenGrammar(self._tokenizer, automaton)

    def drop(self) -> None:
        """Stop producing."""
        for order in self.orders:
            order.dropped = True


class _Answer:
    """The sink of one answer: turns its tokens into pieces."""

    def __init__(
        self, index: int, prompt: Prompt, tokenizer: Tokenizer, news: queue.SimpleQueue[OutputChunk | FoveaError]
    ) -> None:
        self._index = index
        self._prompt = prompt
        self._news = news
        self._text = Detokenizer(tokenizer)
        self._stops = Stops(prompt.stops)
        self._pending: list[StreamedToken] = []
        self._offsets: list[int] = []  # where the prompt's tokens begin in its echo
        self._scored = 0  # tokens of the prompt that were told
        self._read = 0  # characters that came
        self._shown = 0  # characters that were let through
        self._ended = False
        if prompt.echo:
            self._echo(tokenizer)

    def prompt(self, tokens: Sequence[Token]) -> None:
        """Log-probabilities of the prompt, whose text was shown already."""
        places = self._offsets[self._scored : self._scored + len(tokens)]
        self._scored += len(tokens)
        self._news.put(OutputChunk(self._index, tokens=tuple(map(StreamedToken, tokens, places))))

    def token(self, token: Token) -> bool:
        """Show what this token completes; True at a stop text."""
        text = self._text.feed(token.id)
        if self._prompt.top is not None:
            self._pending.append(StreamedToken(token, self._read))
        self._read += len(text)
        self._show(self._stops.feed(text))
        return self._stops.hit

    def end(self, reason: FinishReason | FoveaError, produced: int) -> None:
        """Show what was held back, and the reason."""
        if self._ended:
            return
        self._ended = True
        if isinstance(reason, FoveaError):
            self._news.put(reason)
            return
        rest = self._stops.feed(self._text.end()) + self._stops.end()
        self._shown += len(rest)
        hit = self._stops.hit
        tokens = tuple(s for s in self._pending if s.offset < self._shown or not hit)
        self._news.put(OutputChunk(self._index, rest, tokens, "stop" if hit else reason, produced))

    def _show(self, text: str) -> None:
        if not text:
            return
        self._shown += len(text)
        ready = tuple(s for s in self._pending if s.offset < self._shown)
        self._pending = self._pending[len(ready) :]
        self._news.put(OutputChunk(self._index, text, ready))

    def _echo(self, tokenizer: Tokenizer) -> None:
        """Show the prompt as the caller wrote it; stop texts do not look into it."""
        spelled, text = Detokenizer(tokenizer, special=True), ""
        for place, token in enumerate(self._prompt.ids):
            self._offsets.append(len(text))
            text += spelled.feed(token) if place >= self._prompt.hidden else ""
        text += spelled.end()
        self._read = self._shown = len(text)
        self._news.put(OutputChunk(self._index, text))
        if self._prompt.top is not None:
            # Nothing came before the first, so it has no probability; of others none was asked.
            self.prompt([Token(token) for token in self._prompt.ids[: max(1, self._prompt.scored_from)]])
