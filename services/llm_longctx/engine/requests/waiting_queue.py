"""Waiting queue: sequences that are not admitted yet, in order of priority and arrival.

It is what the threads of requests and the scheduler's thread share, so all locking is here.
"""

import threading
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic

from fovea.errors import NotReady, QueueFull
from services.llm_longctx.engine.sequence import S, Sequence
from shared.retry_after import PlaceEstimate


class WaitingQueue(Generic[S]):
    """Sequences by rank, each told its place whenever that changes.

    Attributes:
        max_waiting: Sequences that may wait, each with its siblings.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._sequences: deque[Sequence[S]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._places = PlaceEstimate()

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence[S]]:
        """The sequences as they are now, the next one first."""
        with self._changed:
            return iter(list(self._sequences))

    # On the threads of requests.

    def add(self, sequence: Sequence[S]) -> None:
        """Line up. Raises QueueFull: as many sequences wait as may; NotReady: the queue is closed."""
        with self._changed:
            self.require_open()
            if len(self) >= self.max_waiting:
                detail = f"{len(self)} requests wait for this model, and no more may."
                raise QueueFull(detail, hint="Try again later.", retry_after=self._places.send_away())
            self._insert(sequence)
            self._changed.notify()

    def wake(self) -> None:
        """Let the scheduler look for work. Raises NotReady: the queue is closed."""
        with self._changed:
            self.require_open()
            self._changed.notify()

    def close(self) -> None:
        """Accept no more, and let the scheduler come to its end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def require_open(self) -> None:
        """Check that sequences are accepted. Raises NotReady: they are not."""
        if self._is_closed:
            raise NotReady("The model was taken out of service.")

    # On the scheduler's thread.

    def wait_for(self, has_work: Callable[[], object]) -> bool:
        """Wait until there is work or the queue is closed; whether it is still open."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or has_work())
            return not self._is_closed

    def pop_if(self, fits: Callable[[Sequence[S]], bool]) -> Sequence[S] | None:
        """The next sequence, if there is one and it fits."""
        with self._changed:
            if not self._sequences or not fits(self._sequences[0]):
                return None
            sequence = self._sequences.popleft()
            self._places.leave(id(sequence))
            self._report_places()
            return sequence

    def put_back(self, sequence: Sequence[S]) -> None:
        """Line up again, by arrival in front of later ones; there is always room."""
        with self._changed:
            self._insert(sequence)

    def discard(self, sequence: Sequence[S]) -> None:
        """Forget a sequence that came to its end, if it waits."""
        with self._changed:
            if sequence in self._sequences:
                self._sequences.remove(sequence)
                self._report_places()
                self._places.leave(id(sequence))

    def _insert(self, sequence: Sequence[S]) -> None:
        insort(self._sequences, sequence, key=lambda s: s.rank)
        self._places.enter(id(sequence))
        self._report_places()

    def _report_places(self) -> None:
        for place, sequence in enumerate(self._sequences, 1):
            sequence.request.run.progress(0.0, f"{place} in the queue")
