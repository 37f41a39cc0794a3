"""Generation: from the engine's tokens to the protocol's text, one callback per answer.

Tokens become characters, stop texts end answers, log-probabilities wait for the text they belong to. Knows nothing
about the protocol's forms.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.llm_longctx.engine import (
    CandidateSpec,
    FinishReason,
    GenerationRequest,
    Sampling,
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
class StreamedToken:
    """A token of the shown text and where it begins in it, in characters."""

    token: ScoredToken
    offset: int


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """What is new in one answer: text, its tokens where log-probabilities are wanted, and the end with its reason.

    Attributes:
        index: Which answer.
        produced: Tokens of this answer, given with its end.
        calls: News of its tool calls.
        captured: What was newly captured.
    """

    index: int
    text: str = ""
    tokens: tuple[StreamedToken, ...] = ()
    reason: FinishReason | Literal["tool_calls"] | None = None
    produced: int = 0
    calls: tuple[CallUpdate, ...] = ()
    captured: tuple[CapturedTokens, ...] = ()


class Generation:
    """Answers being produced to one or more requests; iterate over their chunks as they come.

    Attributes:
        requests: What was begun.
    """

    def __init__(
        self,
        scheduler: Scheduler[Any],
        tokenizer: Tokenizer,
        run: CallContext,
        make_parser: Callable[[], ToolParser] | None = None,
    ) -> None:
        """Prepare; each answer is read by a tool parser of its own, if one is made."""
        self._make_parser = make_parser
        self._parsers: dict[int, ToolParser] = {}
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._run = run
        self._news: queue.SimpleQueue[OutputChunk | FoveaError] = queue.SimpleQueue()
        self.requests: list[GenerationRequest] = []
        self._open = 0

    def begin(
        self,
        request: GenerationRequest,
        samplings: Sequence[Sampling],
        options: TextOptions = _PLAIN,
        grammar: TokenGrammar | CallGrammar | None = None,
    ) -> None:
        """Ask for one answer per sampling; a grammar says what they may say.

        Raises:
            QueueFull: Too many requests wait.
        """
        callbacks = [
            _TextCallback(self._open + i, request, options, self._tokenizer, self._news) for i in range(len(samplings))
        ]
        candidates = [
            CandidateSpec(sampling, callback, None if grammar is None else grammar.fork())
            for sampling, callback in zip(samplings, callbacks, strict=True)
        ]
        request = replace(request, candidates=candidates, run=self._run)
        self._open += len(candidates)
        self.requests.append(request)
        try:
            self._scheduler.add_request(request)
        except FoveaError:
            self.abort()
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
                yield piece if self._make_parser is None else self._read_calls(piece, self._make_parser)
        finally:
            self.abort()

    def _read_calls(self, piece: OutputChunk, make_parser: Callable[[], ToolParser]) -> OutputChunk:
        """The piece with the calls taken out of its text."""
        parser = self._parsers.setdefault(piece.index, make_parser())
        text, calls = parser.feed(piece.text)
        if piece.reason is None:
            return replace(piece, text=text, calls=tuple(calls))
        rest, last = parser.end()
        reason = "tool_calls" if parser.num_calls and piece.reason == "stop" else piece.reason
        return replace(piece, text=text + rest, calls=(*calls, *last), reason=reason)

    def abort(self) -> None:
        """Stop what is still being produced."""
        if self._open:
            for request in self.requests:
                self._scheduler.abort(request)


class _TextCallback:
    """Turns the tokens of one answer into chunks; a `TokenCallback`."""

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        options: TextOptions,
        tokenizer: Tokenizer,
        news: queue.SimpleQueue[OutputChunk | FoveaError],
    ) -> None:
        self._index = index
        self._has_logprobs = request.top_logprobs is not None
        self._news = news
        self._text = Detokenizer(tokenizer)
        self._stops = StopStringFilter(options.stops)
        self._pending: list[StreamedToken] = []
        self._offsets: list[int] = []  # where the prompt's tokens begin in its echo
        self._scored = 0  # tokens of the prompt that were scored
        self._read = 0  # characters that were produced
        self._shown = 0  # characters that were let through
        self._ended = False
        if options.echo:
            self._echo(request, tokenizer, options.hidden)

    def on_prompt(self, tokens: Sequence[ScoredToken]) -> None:
        """Log-probabilities of the prompt, whose text was shown already."""
        places = self._offsets[self._scored : self._scored + len(tokens)]
        self._scored += len(tokens)
        self._news.put(OutputChunk(self._index, tokens=tuple(map(StreamedToken, tokens, places))))

    def on_capture(self, captured: Sequence[CapturedTokens]) -> None:
        """Show what was captured, before the text that comes of it."""
        self._news.put(OutputChunk(self._index, captured=tuple(captured)))

    def on_token(self, token: ScoredToken) -> bool:
        """Show what this token completes; True at a stop text."""
        text = self._text.feed(token.id)
        if self._has_logprobs:
            self._pending.append(StreamedToken(token, self._read))
        self._read += len(text)
        self._show(self._stops.feed(text))
        return self._stops.is_hit

    def on_finish(self, reason: FinishReason | FoveaError, produced: int) -> None:
        """Show what was held back, and the reason."""
        if self._ended:
            return
        self._ended = True
        if isinstance(reason, FoveaError):
            self._news.put(reason)
            return
        rest = self._stops.feed(self._text.end()) + self._stops.end()
        self._shown += len(rest)
        hit = self._stops.is_hit
        tokens = tuple(s for s in self._pending if s.offset < self._shown or not hit)
        self._news.put(OutputChunk(self._index, rest, tokens, "stop" if hit else reason, produced))

    def _show(self, text: str) -> None:
        if not text:
            return
        self._shown += len(text)
        ready = tuple(s for s in self._pending if s.offset < self._shown)
        self._pending = self._pending[len(ready) :]
        self._news.put(OutputChunk(self._index, text, ready))

    def _echo(self, request: GenerationRequest, tokenizer: Tokenizer, hidden: int) -> None:
        """Show the prompt as the caller wrote it; stop texts do not look into it."""
        spelled, text = Detokenizer(tokenizer, special=True), ""
        for place, token in enumerate(request.prompt_ids):
            self._offsets.append(len(text))
            text += spelled.feed(token) if place >= hidden else ""
        text += spelled.end()
        self._read = self._shown = len(text)
        self._news.put(OutputChunk(self._index, text))
        if self._has_logprobs:
            # Nothing precedes the first token, so it has no probability; those before `score_from` are not scored.
            self.on_prompt([ScoredToken(token) for token in request.prompt_ids[: max(1, request.score_from)]])
