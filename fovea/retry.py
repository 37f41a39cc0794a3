"""When a call is worth sending again, and how long to wait for what. Pure arithmetic: the clients do the sleeping.

Only 429 and 503 are tried again: both say that nothing was done, so that a second try can do no harm.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2

from fovea.errors import read_retry_after
from shared.api.job import FINAL, Job
from shared.errors import DeadlineExceeded

__all__ = ["STREAM_RESUME_S", "JobWatcher", "RetryPolicy", "iterate_pauses"]

STREAM_RESUME_S = 0.5
"""Seconds before a broken stream of events is taken up again."""

_WORTH = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a client tries.

    Attributes:
        tries: Requests in all, the first included.
        longest: Seconds that one wait may last; a `Retry-After` beyond it is handed to the caller as an error.
        first: Seconds before the second try when the gateway names none; doubled each time, with jitter.
    """

    tries: int = 4
    longest: float = 30.0
    first: float = 0.25

    def wait(self, attempt: int, response: httpx2.Response) -> float | None:
        """Seconds to wait after try number `attempt` (from 1), or None when its response is final."""
        if response.status_code not in _WORTH or attempt >= self.tries:
            return None
        asked = read_retry_after(response)
        if asked is None:
            return min(self.longest, self.first * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        return asked if asked <= self.longest else None


def iterate_pauses(timeout: float | None) -> Iterator[float]:
    """Seconds between two looks at a job: short at first, a second in the long run.

    Raises:
        DeadlineExceeded: `timeout` seconds have passed.
    """
    until = float("inf") if timeout is None else time.monotonic() + timeout
    pause = 0.05
    while (left := until - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(1.0, pause * 1.5)
    raise DeadlineExceeded(f"The job is not finished after {timeout:g} s.", hint="It goes on; look again later.")


class JobWatcher:
    """Tells a listener about a job, once per change."""

    def __init__(self, listener: Callable[[Job], None] | None) -> None:
        self._listener = listener
        self._last: Job | None = None

    def finished(self, job: Job) -> bool:
        """Whether the job has ended; the listener hears of it when it has changed."""
        if self._listener is not None and job != self._last:
            self._listener(job)
        self._last = job
        return job.status in FINAL
