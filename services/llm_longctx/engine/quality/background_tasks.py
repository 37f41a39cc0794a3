"""Background tasks: work in pieces for the moments in which no request waits, such as comparisons with dense."""

from collections import deque
from collections.abc import Generator

from shared import telemetry


class BackgroundTasks:
    """Work in pieces. Cancelled when a sequence needs the memory."""

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
