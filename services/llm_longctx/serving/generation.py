"""Generation: the answers to one call, from the engine's thread to the event loop.

Thoughts and tool calls are taken out of their text here. Knows nothing about the protocol's forms.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

from fovea.errors import FoveaError, QueueFull
from services.llm_longctx.engine import GenerationRequest, Scheduler
from services.llm_longctx.serving.answer_text import OutputChunk, TextHooks, TextOptions
from services.llm_longctx.serving.grammars.token_rules import OpeningGrammar
from services.llm_longctx.serving.reasoning.reasoning_parser import ReasoningParser
from services.llm_longctx.serving.request_extension import RequestExtension
from services.llm_longctx.serving.tools.tool_parser import ToolParser
from shared.lm.tokenizer import Tokenizer
from shared.registry import CallContext

MAX_RUNNING = 64
"""Answers of one call that the scheduler has at a time, but for those of its first request."""

_RETRY_S = 0.1
"""Seconds between two tries where the scheduler's queue is full of others' requests."""

_PLAIN = TextOptions()


class Generation:
    """Answers being produced to one or more requests, for the event loop in which it is made.

    Of many requests some wait here until others have ended, so that they don't fill the scheduler's queue. Leaving its
    block stops them.

    Attributes:
        requests: Requests that were begun.
        extensions: Parts of plug-ins in the call.
        unenforced: Keywords of its schemas that are left to the model.
        warnings: Sentences about what was asked for in vain.
    """

    def __init__(
        self,
        scheduler: Scheduler[Any],
        tokenizer: Tokenizer,
        run: CallContext,
        extensions: Sequence[RequestExtension] = (),
    ) -> None:
        self._make_parser: Callable[[], ToolParser] | None = None
        self._is_forced = False
        self.unenforced: list[str] = []
        self.warnings: list[str] = []
        self._parsers: dict[int, ToolParser] = {}
        self._make_reasoner: Callable[[], ReasoningParser] | None = None
        self._reasoners: dict[int, ReasoningParser] = {}
        self._shows_thoughts = True
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[OutputChunk | FoveaError] = asyncio.Queue()
        self.requests: list[GenerationRequest] = []
        self.extensions = extensions
        self._recorder = next((one.recorder for one in extensions if one.recorder is not None), None)
        self._open = 0  # answers that did not end
        self._running = 0  # those of them that the scheduler has
        self._waiting: deque[GenerationRequest] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop what is still being produced: nobody reads it."""
        if self._open:
            for request in self.requests:
                self._scheduler.abort(request)

    def use_reasoner(self, make_reasoner: Callable[[], ReasoningParser], *, is_shown: bool) -> None:
        """Take what the model thinks out of each answer with a parser of its own, and pass it on if `is_shown`."""
        self._make_reasoner, self._shows_thoughts = make_reasoner, is_shown

    def use_parser(self, make_parser: Callable[[], ToolParser], *, is_forced: bool = False) -> None:
        """Read the calls of each answer with a parser of its own; a forced answer is calls and has no text."""
        self._make_parser, self._is_forced = make_parser, is_forced

    def extend(self, request: GenerationRequest) -> None:
        """Let plug-ins add to a request before any is begun; raises as `RequestExtension.extend`."""
        for one in self.extensions:
            one.extend(request)

    def begin(
        self, request: GenerationRequest, options: TextOptions = _PLAIN, grammar: OpeningGrammar | None = None
    ) -> None:
        """Line up a request; a grammar says what its answers may say. Any thread may call it before `read` is called.

        Raises QueueFull: too many requests wait, and this is the first.
        """
        recorder = None if self.requests else self._recorder
        if self._is_forced:
            options = replace(options, stops=())  # which end texts, and a forced answer has none
        request.hooks = TextHooks(
            self._open, request, options, grammar, self._tokenizer, self._put, recorder, self._make_parser
        )
        request.run = self._run
        self._open += len(request.samplings)
        self.requests.append(request)
        self._waiting.append(request)
        if len(self.requests) == 1:
            self._start_next()

    async def read(self) -> OutputChunk | None:
        """Wait for what is new in one of the answers; None once all have ended.

        Raises FoveaError: an answer failed: cancelled, too late, or our fault.
        """
        if not self._open:
            return None
        if self._waiting:
            await self._start_more()
        piece = await self._news.get()
        if isinstance(piece, FoveaError):
            raise piece
        self._open -= piece.reason is not None
        self._running -= piece.reason is not None
        if self._make_reasoner is not None:
            piece = self._read_thoughts(piece, self._make_reasoner)
        return piece if self._make_parser is None else self._read_calls(piece, self._make_parser)

    async def _start_more(self) -> None:
        """Hand over requests that wait, as many as may run; where none runs and the queue is full, try again."""
        while self._waiting and (not self._running or self._running + len(self._waiting[0].samplings) <= MAX_RUNNING):
            try:
                self._start_next()
            except QueueFull:
                if self._running:
                    return
                self._run.check()
                await asyncio.sleep(_RETRY_S)

    def _start_next(self) -> None:
        self._scheduler.add_request(self._waiting[0])
        self._running += len(self._waiting.popleft().samplings)

    def _put(self, piece: OutputChunk | FoveaError) -> None:
        """Pass a piece from the engine's thread to the loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, piece)

    def _read_thoughts(self, piece: OutputChunk, make_reasoner: Callable[[], ReasoningParser]) -> OutputChunk:
        """The piece with what the model thinks taken out of its text."""
        reasoner = self._reasoners.setdefault(piece.index, make_reasoner())
        thought, text = reasoner.feed(piece.text)
        if piece.reason is not None:
            rest, more = reasoner.end(is_cut=piece.reason == "length")
            thought, text = thought + rest, text + more
        return replace(piece, text=text, thought=thought if self._shows_thoughts else "")

    def _read_calls(self, piece: OutputChunk, make_parser: Callable[[], ToolParser]) -> OutputChunk:
        """The piece with the calls taken out of its text."""
        parser = self._parsers.setdefault(piece.index, make_parser())
        text, calls = parser.feed(piece.text)
        reason = piece.reason
        if reason is not None:
            rest, last = parser.end(is_cut=reason == "length")
            text, calls = text + rest, [*calls, *last]
            is_called = parser.num_calls and not parser.is_last_cut  # nobody is to run a call that is cut
            reason = "tool_calls" if is_called and reason == "stop" else reason
        if self._is_forced:  # the rest of a call that was cut is not text
            return replace(piece, text="", calls=tuple(calls), reason=reason, has_text=False)
        return replace(piece, text=text, calls=tuple(calls), reason=reason)
