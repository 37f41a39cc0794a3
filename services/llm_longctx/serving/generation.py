"""Generation: from the engine's tokens to the protocol's text, from the engine's thread to the event loop.

Tokens become characters, stop texts end answers, log-probabilities wait for the text they belong to. Knows nothing
about the protocol's forms.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from services.llm_longctx.engine import (
    FinishReason,
    GenerationRequest,
    Grammar,
    RequestHooks,
    Scheduler,
    ScoredToken,
)
from services.llm_longctx.engine.taps import CapturedTokens
from services.llm_longctx.serving.grammars.token_grammar import TokenGrammar
from services.llm_longctx.serving.stop_strings import StopStringFilter
from services.llm_longctx.serving.tools.call_grammar import CallGrammar
from services.llm_longctx.serving.tools.tool_parser import CallUpdate, ToolParser
from shared.errors import FoveaError
from shared.lm.tokenizer import Detokenizer, Tokenizer
from shared.registry import CallContext


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the answers to a request become text.

    Attributes:
        stops: Texts that end an answer.
        echo: Whether the prompt is part of the answer.
        hidden: Tokens at the prompt's beginning that the caller did not write and an echo does not show.
    """

    stops: Sequence[str] = ()
    echo: bool = False
    hidden: int = 0


_PLAIN = TextOptions()


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """What is new in one answer: text, its tokens where log-probabilities are wanted, and the end with its reason.

    Attributes:
        index: Which answer.
        produced: Tokens of this answer, given with its end.
        calls: News of its tool calls.
        captured: What was newly captured.
        has_text: Whether the answer is a text, which a forced call is not.
    """

    index: int
    text: str = ""
    tokens: tuple[ScoredToken, ...] = ()
    reason: FinishReason | Literal["tool_calls"] | None = None
    produced: int = 0
    calls: tuple[CallUpdate, ...] = ()
    captured: tuple[CapturedTokens, ...] = ()
    has_text: bool = True


class Generation:
    """Answers being produced to one or more requests, for the event loop in which it is made.

    Leaving its block stops them.

    Attributes:
        requests: What was begun.
        unenforced: Keywords of its schemas that are left to the model.
    """

    def __init__(self, scheduler: Scheduler[Any], tokenizer: Tokenizer, run: CallContext) -> None:
        self._make_parser: Callable[[], ToolParser] | None = None
        self._is_forced = False
        self.unenforced: list[str] = []
        self._parsers: dict[int, ToolParser] = {}
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[OutputChunk | FoveaError] = asyncio.Queue()
        self.requests: list[GenerationRequest] = []
        self._open = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop what is still being produced: nobody reads it."""
        if self._open:
            for request in self.requests:
                self._scheduler.abort(request)

    def use_parser(self, make_parser: Callable[[], ToolParser], *, is_forced: bool = False) -> None:
        """Read the calls of each answer with a parser of its own; a forced answer is calls and has no text."""
        self._make_parser, self._is_forced = make_parser, is_forced

    def begin(
        self,
        request: GenerationRequest,
        options: TextOptions = _PLAIN,
        grammar: TokenGrammar | CallGrammar | None = None,
    ) -> None:
        """Line up a request; a grammar says what its answers may say. Any thread may call it.

        Raises:
            QueueFull: Too many requests wait.
        """
        request.hooks = _TextHooks(self._open, request, options, grammar, self._tokenizer, self._put)
        request.run = self._run
        self._open += len(request.samplings)
        self.requests.append(request)
        self._scheduler.add_request(request)

    async def read(self) -> OutputChunk | None:
        """Wait for what is new in one of the answers; None once all have ended.

        Raises:
            FoveaError: An answer failed: cancelled, too late, or our fault.
        """
        if not self._open:
            return None
        piece = await self._news.get()
        if isinstance(piece, FoveaError):
            raise piece
        self._open -= piece.reason is not None
        return piece if self._make_parser is None else self._read_calls(piece, self._make_parser)

    def _put(self, piece: OutputChunk | FoveaError) -> None:
        """Pass a piece from the engine's thread to the loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, piece)

    def _read_calls(self, piece: OutputChunk, make_parser: Callable[[], ToolParser]) -> OutputChunk:
        """The piece with the calls taken out of its text."""
        parser = self._parsers.setdefault(piece.index, make_parser())
        text, calls = parser.feed(piece.text)
        reason = piece.reason
        if reason is not None:
            rest, last = parser.end()
            text, calls = text + rest, [*calls, *last]
            reason = "tool_calls" if parser.num_calls and reason == "stop" else reason
        if self._is_forced:  # what is left of a call that was cut is no text
            return replace(piece, text="", calls=tuple(calls), reason=reason, has_text=False)
        return replace(piece, text=text, calls=tuple(calls), reason=reason)


class _TextHooks(RequestHooks):
    """Turns the tokens of a request's answers into chunks."""

    def __init__(
        self,
        first: int,
        request: GenerationRequest,
        options: TextOptions,
        grammar: TokenGrammar | CallGrammar | None,
        tokenizer: Tokenizer,
        put: Callable[[OutputChunk | FoveaError], None],
    ) -> None:
        count = len(request.samplings)
        self._grammar = grammar
        self._answers = [_AnswerText(first + i, request, options, tokenizer, put) for i in range(count)]

    def open_grammar(self, answer: int) -> Grammar | None:
        return None if self._grammar is None else self._grammar.fork()

    def on_prompt(self, answer: int, tokens: Sequence[ScoredToken]) -> None:
        self._answers[answer].add_scores(tokens)

    def on_capture(self, answer: int, captured: Sequence[CapturedTokens]) -> None:
        self._answers[answer].add_captured(captured)

    def on_token(self, answer: int, token: ScoredToken) -> bool:
        return self._answers[answer].add_token(token)

    def on_finish(self, answer: int, reason: FinishReason | FoveaError, produced: int) -> None:
        self._answers[answer].end(reason, produced)


class _AnswerText:
    """The text of one answer: what is shown, and what waits for a stop text to be ruled out."""

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        options: TextOptions,
        tokenizer: Tokenizer,
        put: Callable[[OutputChunk | FoveaError], None],
    ) -> None:
        self._index = index
        self._has_logprobs = request.top_logprobs is not None
        self._put = put
        self._text = Detokenizer(tokenizer)
        self._stops = StopStringFilter(options.stops)
        self._pending: list[ScoredToken] = []
        self._offsets: list[int] = []  # where the prompt's tokens begin in its echo
        self._scored = 0  # tokens of the prompt that were scored
        self._read = 0  # characters that were produced
        self._shown = 0  # characters that were let through
        self._ended = False
        if options.echo:
            self._echo(request, tokenizer, options.hidden)

    def add_scores(self, tokens: Sequence[ScoredToken]) -> None:
        """Show log-probabilities of the prompt, whose text was shown already."""
        places = self._offsets[self._scored : self._scored + len(tokens)]
        self._scored += len(tokens)
        self._put(OutputChunk(self._index, tokens=tuple(map(_place, tokens, places))))

    def add_captured(self, captured: Sequence[CapturedTokens]) -> None:
        """Show what was captured, before the text that comes of it."""
        self._put(OutputChunk(self._index, captured=tuple(captured)))

    def add_token(self, token: ScoredToken) -> bool:
        """Show what this token completes; True at a stop text."""
        text = self._text.feed(token.id)
        if self._has_logprobs:
            self._pending.append(_place(token, self._read))
        self._read += len(text)
        self._show(self._stops.feed(text))
        return self._stops.is_hit

    def end(self, reason: FinishReason | FoveaError, produced: int) -> None:
        """Show what was held back, and the reason."""
        if self._ended:
            return
        self._ended = True
        if isinstance(reason, FoveaError):
            self._put(reason)
            return
        rest = self._stops.feed(self._text.end()) + self._stops.end()
        self._shown += len(rest)
        hit = self._stops.is_hit
        tokens = tuple(s for s in self._pending if s.offset < self._shown or not hit)
        self._put(OutputChunk(self._index, rest, tokens, "stop" if hit else reason, produced))

    def _show(self, text: str) -> None:
        if not text:
            return
        self._shown += len(text)
        ready = tuple(s for s in self._pending if s.offset < self._shown)
        self._pending = self._pending[len(ready) :]
        self._put(OutputChunk(self._index, text, ready))

    def _echo(self, request: GenerationRequest, tokenizer: Tokenizer, hidden: int) -> None:
        """Show the prompt as the caller wrote it; stop texts do not look into it."""
        spelled, text = Detokenizer(tokenizer, special=True), ""
        for place, token in enumerate(request.prompt_ids):
            self._offsets.append(len(text))
            text += spelled.feed(token) if place >= hidden else ""
        text += spelled.end()
        self._read = self._shown = len(text)
        self._put(OutputChunk(self._index, text))
        if self._has_logprobs:
            # Nothing precedes the first token, so it has no probability; those before `score_from` are not scored.
            self.add_scores([ScoredToken(token) for token in request.prompt_ids[: max(1, request.score_from)]])


def _place(token: ScoredToken, offset: int) -> ScoredToken:
    return replace(token, offset=offset)
