"""The scheduler of models whose requests have a session each: every answer is fed on its own, all take turns.

A session is admitted when the most that it may come to fits beside the others'. Knows sessions by the `Stream`
protocol; knows no model, no text and no HTTP.
"""

from __future__ import annotations

import time

from torch import Tensor

from services.llm_longctx.engine.answer import Answer, Waiting
from services.llm_longctx.engine.sampler import scored
from services.llm_longctx.engine.stream import Stream
from services.llm_longctx.engine.turns import Turns, fault
from shared import telemetry
from shared.errors import TooLarge

__all__ = ["StreamScheduler"]

MOST_BYTES = 512 * 2**20
"""What all sessions in flight may come to, unless told otherwise."""


class StreamScheduler(Turns[Stream]):
    """Serves orders that open sessions.

    Args:
        vocab: Size of the vocabulary.
        most_bytes: What all sessions in flight may come to.
        max_batch: Answers in flight.
        prefill_tokens: Prompt tokens read per step; the chunk in which they run out is read to its end.
        max_waiting: Orders that may wait.
        threads: Intra-op threads of torch; 0 leaves the library's default.
    """

    def __init__(
        self,
        vocab: int,
        *,
        most_bytes: int = MOST_BYTES,
        max_batch: int = 16,
        prefill_tokens: int = 64,
        max_waiting: int = 64,
        threads: int = 0,
    ) -> None:
        super().__init__(vocab, max_waiting=max_waiting, threads=threads)
        self._most_bytes, self._max_batch, self._chunk_tokens = most_bytes, max_batch, prefill_tokens

    @property
    def held_bytes(self) -> int:
        """Bytes that sessions in flight remember."""
        streams = [one.sequence for one in (*self._running, *([self._reading] if self._reading else ()))]
        return sum(stream.nbytes for stream in streams if stream is not None)

    def check(self, most_bytes: int) -> None:
        """Refuse what could never be admitted.

        Raises:
            TooLarge: Its sessions may come to more than there is.
        """
        if most_bytes > self._most_bytes:
            detail = f"The request may come to remember {most_bytes:,} bytes; this model has {self._most_bytes:,}."
            raise TooLarge(detail, hint="Shorten it, or ask for fewer answers.")

    def _decode(self) -> None:
        ready, logits = [], []
        for answer in list(self._running):
            assert answer.sequence is not None  # noqa: S101  # running answers have one
            try:
                logits.append(answer.sequence.feed([answer.fed])[-1].float().cpu())
            except Exception as error:  # noqa: BLE001  # a session that can't go on is no reason to fail the others
                answer.end(fault(error))
                self._running.remove(answer)
            else:
                ready.append(answer)
        self._advance(ready, logits)

    def _open(self, begun: Waiting[Stream]) -> None:
        try:
            assert begun.order.opens is not None  # noqa: S101  # such orders are all that is submitted here
            begun.sequence = begun.order.opens()
        except Exception as error:  # noqa: BLE001  # as above
            self._reading = None
            begun.end(fault(error))
        else:
            begun.order.facts.cached_tokens = begun.sequence.read

    def _fits(self, begun: Waiting[Stream]) -> bool:
        running = self._running
        if not running:
            return True
        held = sum(answer.order.most_bytes for answer in running)
        wanted = begun.order.most_bytes * len(begun.answers)
        return len(running) + len(begun.answers) <= self._max_batch and held + wanted <= self._most_bytes

    def _read(self, begun: Waiting[Stream]) -> None:
        order, stream, left = begun.order, begun.sequence, self._chunk_tokens
        assert stream is not None  # noqa: S101  # set on admission
        while left > 0 and self._reading is begun:
            size = min(stream.room, len(order.ids) - stream.read)
            left -= size
            try:
                logits = self._chunk(begun, stream, size)
            except Exception as error:  # noqa: BLE001  # as above
                self._reading = None
                begun.end(fault(error))
            else:
                if stream.read >= len(order.ids):
                    self._reading = None
                    self._begin(begun, stream, logits[-1])

    def _chunk(self, begun: Waiting[Stream], stream: Stream, size: int) -> Tensor:
        """Read the next tokens of the prompt, and tell their log-probabilities where they are asked for."""
        order, begin = begun.order, stream.read
        logits = stream.feed(order.ids[begin : begin + size]).float().cpu()
        first = max(begin + 1, order.score_from, begun.told)
        if order.score_prompt and (known := list(order.ids[first : begin + size + 1])):
            begun.told = first + len(known)
            tokens = scored(logits[first - 1 - begin :][: len(known)], known, order.top or 0)
            for answer in begun.answers:
                answer.prompt(tokens)
        return logits

    def _begin(self, begun: Waiting[Stream], stream: Stream, logits: Tensor) -> None:
        """The prompt is read: its answers begin, each with a session of its own."""
        now = time.perf_counter()
        begun.context.run(telemetry.observe_stage, "pre", now - begun.since)
        first, *others = begun.answers
        first.sequence = stream
        for answer in others:
            answer.sequence = stream.fork()
        for answer in begun.answers:
            answer.since = now
        self._running += begun.answers
        self._advance(begun.answers, [logits] * len(begun.answers))

    def _account(self, answer: Answer[Stream]) -> None:
        order, stream = answer.order, answer.sequence
        assert stream is not None  # noqa: S101  # it has just been fed
        if order.keeps is not None:
            answer.context.run(order.keeps, stream, answer.produced[-1:])
        order.facts.kv_bytes += stream.nbytes
        order.facts.prefill_density = stream.density
        order.facts.kv_bytes_dense += stream.dense_nbytes
