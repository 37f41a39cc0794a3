"""Backend protocol: what a scheduler needs from whatever runs its sequences, and work that waits for idle moments."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable
from typing import Protocol

from torch import Tensor

from services.llm_longctx.engine.device.step_draws import DrawnRow
from services.llm_longctx.engine.sequence import S, Sequence
from shared import telemetry


class IdleWork:
    """Work in pieces that is done while nobody waits, and given up where its memory is needed."""

    def __init__(self) -> None:
        self._pieces: deque[Generator[None, None, None]] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, work: Generator[None, None, None]) -> None:
        """Line up; when it is given up it is closed."""
        self._pieces.append(work)

    def run_one(self) -> None:
        """Do the next piece, if there is any."""
        if not self._pieces:
            return
        try:
            next(self._pieces[0])
        except StopIteration:
            self._pieces.popleft()
        except Exception as error:  # noqa: BLE001  # no request waits for it: the log hears of it
            telemetry.log().warning("work in the background failed", exc_info=error)
            self._pieces.popleft()

    def clear(self) -> None:
        """Give up all of it."""
        while self._pieces:
            self._pieces.popleft().close()


class SequenceBackend(Protocol[S]):
    """Allocates, prefills and decodes sequences. Called on the scheduler's thread.

    Attributes:
        vocab: Size of the vocabulary.
        idle_work: Given up where a sequence needs its memory.
    """

    vocab: int
    idle_work: IdleWork

    def fits(self, sequence: Sequence[S], running: Collection[Sequence[S]]) -> bool:
        """Whether a sequence and its siblings can be admitted beside those that run."""
        ...

    def allocate(self, sequence: Sequence[S], parent: Sequence[S] | None = None) -> None:
        """Give a sequence what it is prefilled with: nothing read yet, a cached prefix, or all that its parent read.

        Raises:
            PoolExhausted: There is no room.
            FoveaError: It can't be served.
        """
        ...

    def prefill_chunk(self, sequence: Sequence[S], limit: int) -> Tensor:
        """Read the next chunk of its prompt, about `limit` tokens: the logits that `count_logits` asks for [t,V].

        Raises:
            PoolExhausted: There is no room; the sequence is of no use until it is allocated anew.
        """
        ...

    def can_append(self, running: Collection[Sequence[S]]) -> bool:
        """Whether each of them has room for one more token."""
        ...

    def decode_batch(self, batch: list[Sequence[S]]) -> Iterable[Tensor | DrawnRow | Exception]:
        """Feed each its next token: the logits [V] of each, on a device with a token, or why it alone can't go on.

        Raises:
            PoolExhausted: Room ran out on the way; none of them is of use any more.
        """
        ...

    def is_preemptible(self, sequence: Sequence[S]) -> bool:
        """Whether it may lose what it holds and be read again."""
        ...

    def complete(self, sequence: Sequence[S], running: Collection[Sequence[S]]) -> None:
        """An answer is about to end well: record what it cost, and hand on what it holds where somebody wants it."""
        ...

    def release(self, sequence: Sequence[S]) -> None:
        """Take back what a sequence holds, if anything."""
        ...

    def reclaim(self) -> None:
        """Give up what only saves time: cached prefixes."""
        ...
