"""Work with a model that is not one of its batches, such as a sweep: one piece at a time per model, in a bounded queue.

A thread of its own for each model; deadline, cancellation, processor time and patience of jobs are those of batches.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shared.registry import CallContext
from shared.serving.batching import Batcher, BatchOptions
from shared.serving.watched_work import WatchedWork

Answer = TypeVar("Answer")
Side = Callable[[CallContext], Any]


class SideWork:
    """The queues of one host's models; each begins with its first call."""

    def __init__(self, service: str, depth: int, watched: WatchedWork) -> None:
        self._service, self._watched = service, watched
        self._options = BatchOptions(size=1, depth=depth)
        self._queues: dict[str, Batcher[Side, Any]] = {}

    async def do(self, model: str, work: Callable[[CallContext], Answer], run: CallContext) -> Answer:
        """Do a piece of work when those before it are done.

        Raises FoveaError: the work's, or QueueFull, DeadlineExceeded, Cancelled, NotReady.
        """
        if model not in self._queues:
            name = f"studies of {model}"
            made = Batcher(_do_all, self._options, service=self._service, model=name, watched=self._watched)
            self._queues[model] = made
        answer: Answer = await self._queues[model].submit(work, run)
        return answer

    @property
    def busy(self) -> int:
        """Calls that wait or run."""
        return sum(queue.busy for queue in self._queues.values())

    async def close(self, seconds: float) -> None:
        """Refuse new calls, and finish the waiting ones for up to `seconds`."""
        for queue in self._queues.values():
            await queue.close(seconds)


def _do_all(_key: object, items: Sequence[Side], run: CallContext) -> list[Any]:
    return [item(run) for item in items]
