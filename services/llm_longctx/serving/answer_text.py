"""Answer text: from the engine's tokens to the protocol's text.

Tokens become characters, stop texts end answers, log-probabilities wait for the text they belong to. Knows nothing
about the protocol's forms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fovea.errors import FoveaError
from services.llm_longctx.engine import FinishReason, GenerationRequest, Grammar, RequestHooks, ScoredToken
from services.llm_longctx.engine.taps import CapturedTokens
from services.llm_longctx.serving.grammars.token_rules import OpeningGrammar
from services.llm_longctx.serving.stop_strings import StopStringFilter
from services.llm_longctx.serving.tools.tool_parser import CallUpdate, ToolParser
from shared.lm.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the answers to a request become text.

    Attributes:
        stops: Texts that end an answer.
        echo: Whether the prompt is part of the answer.
        hidden: Tokens at the prompt's beginning that the caller did not write and an echo does not show.
        keeps_stop: Whether the text that ends an answer is part of it.
        shows_special: Whether special tokens are part of the text.
        min_tokens: Stop texts end no answer with fewer tokens.
        named_ends: Stop tokens that the caller named: their ids are given as the reason.
        prompt_logprobs: Give the prompt's log-probabilities, and of so many likeliest tokens; None gives none.
    """

    stops: Sequence[str] = ()
    echo: bool = False
    hidden: int = 0
    keeps_stop: bool = False
    shows_special: bool = False
    min_tokens: int = 0
    named_ends: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """News of one answer: text, its tokens where log-probabilities are wanted, and the end with its reason.

    Attributes:
        index: Which answer.
        produced: Tokens of this answer, given with its end.
        so_far: Tokens of this answer until now, given with its text.
        calls: News of its tool calls.
        captured: New captures.
        stop: The stop text or the named stop token that ended it.
        thought: New text of the model's thoughts before its answer.
        scored: The next tokens of the prompt with their log-probabilities.
        has_text: Whether the answer is a text, which a forced call is not.
    """

    index: int
    text: str = ""
    tokens: tuple[ScoredToken, ...] = ()
    reason: FinishReason | Literal["tool_calls"] | None = None
    produced: int = 0
    calls: tuple[CallUpdate, ...] = ()
    captured: tuple[CapturedTokens, ...] = ()
    stop: str | int | None = None
    thought: str = ""
    scored: tuple[ScoredToken, ...] = ()
    has_text: bool = True
    so_far: int = 0


class TextHooks(RequestHooks):
    """Turns the tokens of a request's answers into chunks."""

    def __init__(
        self,
        first: int,
        request: GenerationRequest,
        options: TextOptions,
        grammar: OpeningGrammar | None,
        tokenizer: Tokenizer,
        put: Callable[[OutputChunk | FoveaError], None],
        recorder: RequestHooks | None = None,
        make_parser: Callable[[], ToolParser] | None = None,
    ) -> None:
        count = len(request.samplings)
        self._grammar, self._recorder = grammar, recorder
        parsers = [make_parser() if make_parser is not None and options.stops else None for _ in range(count)]
        self._answers = [
            _AnswerText(first + i, request, options, tokenizer, put, parser) for i, parser in enumerate(parsers)
        ]

    def open_grammar(self, answer: int) -> Grammar | None:
        return None if self._grammar is None else self._grammar.fork()

    def on_prompt(self, answer: int, tokens: Sequence[ScoredToken]) -> None:
        self._answers[answer].add_scores(tokens)

    def on_capture(self, answer: int, captured: Sequence[CapturedTokens]) -> None:
        self._answers[answer].add_captured(captured)

    def on_logits(self, answer: int, logits: Tensor) -> None:
        if self._recorder is not None:
            self._recorder.on_logits(answer, logits)

    def on_token(self, answer: int, token: ScoredToken) -> bool:
        if self._recorder is not None:
            self._recorder.on_token(answer, token)
        return self._answers[answer].add_token(token)

    def on_stop_token(self, answer: int, token: ScoredToken) -> None:
        if self._recorder is not None:
            self._recorder.on_stop_token(answer, token)
        self._answers[answer].add_stop_token(token)

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
        parser: ToolParser | None,
    ) -> None:
        self._index = index
        self._top = request.top_logprobs
        self._has_logprobs = request.top_logprobs is not None
        self._put = put
        self._options = options
        self._text = Detokenizer(tokenizer, special=options.shows_special)
        self._stops = StopStringFilter(options.stops, is_kept=options.keeps_stop)
        self._before_stops = options.min_tokens - 1  # tokens in which no stop text is looked for
        self._parser = parser  # says where the answer calls a tool: no stop text cuts a call
        self._stop_token: int | None = None
        self._pending: list[ScoredToken] = []
        self._offsets: list[int] = []  # where the prompt's tokens begin in its echo
        self._scored = 0  # tokens of the prompt that were scored
        self._read = 0  # characters that were produced
        self._tokens = 0
        self._shown = 0  # characters that were let through
        self._ended = False
        # Nothing precedes the first token, so it has no probability; those before `score_from` are not scored.
        unscored = [ScoredToken(token) for token in request.prompt_ids[: max(1, request.score_from)]]
        if options.prompt_logprobs is not None:
            put(OutputChunk(index, scored=tuple(unscored)))
        if options.echo:
            self._echo(request, tokenizer, options.hidden, unscored)

    def add_scores(self, tokens: Sequence[ScoredToken]) -> None:
        """Show log-probabilities of the prompt, whose text was shown already if it is shown."""
        if (top := self._options.prompt_logprobs) is not None:
            self._put(OutputChunk(self._index, scored=tuple(replace(one, top=one.top[:top]) for one in tokens)))
        if self._options.echo and self._has_logprobs:
            self._show_scores(tokens)

    def add_captured(self, captured: Sequence[CapturedTokens]) -> None:
        """Show what was captured, before the text that comes of it."""
        self._put(OutputChunk(self._index, captured=tuple(captured)))

    def add_token(self, token: ScoredToken) -> bool:
        """Show what this token completes; True at a stop text."""
        text = self._text.feed(token.id)
        self._tokens += 1
        if self._has_logprobs:
            self._pending.append(replace(token, offset=self._read))
        self._read += len(text)
        is_stoppable = not self._is_calling(text) and self._before_stops <= 0
        self._before_stops -= 1
        if not is_stoppable:
            self._show(self._stops.skip(text))
            return False
        self._show(self._stops.feed(text))
        return self._stops.hit is not None

    def add_stop_token(self, token: ScoredToken) -> None:
        """Note the token that ends the answer, and show it where it is part of the answer."""
        self._stop_token = token.id if token.id in self._options.named_ends else None
        if self._options.keeps_stop:
            self.add_token(token)

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
        hit = self._stops.hit is not None
        tokens = tuple(s for s in self._pending if s.offset < self._shown or not hit)
        stop = self._stops.hit or self._stop_token
        self._put(OutputChunk(self._index, rest, tokens, "stop" if hit else reason, produced, stop=stop))

    def _is_calling(self, text: str) -> bool:
        """Whether a part of more text is of a call."""
        if self._parser is None:
            return False
        was_calling = self._parser.is_calling
        self._parser.feed(text)
        return was_calling or self._parser.is_calling

    def _show(self, text: str) -> None:
        if not text:
            return
        self._shown += len(text)
        ready = tuple(s for s in self._pending if s.offset < self._shown)
        self._pending = self._pending[len(ready) :]
        self._put(OutputChunk(self._index, text, ready, so_far=self._tokens))

    def _show_scores(self, tokens: Sequence[ScoredToken]) -> None:
        places = self._offsets[self._scored : self._scored + len(tokens)]
        self._scored += len(tokens)
        shown = (replace(one, top=one.top[: self._top], offset=at) for one, at in zip(tokens, places, strict=True))
        self._put(OutputChunk(self._index, tokens=tuple(shown)))

    def _echo(
        self, request: GenerationRequest, tokenizer: Tokenizer, hidden: int, unscored: Sequence[ScoredToken]
    ) -> None:
        """Show the prompt as the caller wrote it; stop texts do not look into it."""
        spelled, text = Detokenizer(tokenizer, special=True), ""
        for place, token in enumerate(request.prompt_ids):
            self._offsets.append(len(text))
            text += spelled.feed(token) if place >= hidden else ""
        text += spelled.end()
        self._read = self._shown = len(text)
        self._put(OutputChunk(self._index, text))
        if self._has_logprobs:
            self._show_scores(unscored)
