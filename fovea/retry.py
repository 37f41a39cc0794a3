"""Retry policy of the clients, and the waiting for jobs. Pure arithmetic: the clients do the sleeping.

Only 429 and 503 are tried again: a second try does no harm, as all have the idempotency key of the first.
"""

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from fovea.error_responses import read_retry_after
from fovea.errors import DeadlineExceeded, NotReady, RateLimited

STREAM_RESUME_S = 0.5
"""Seconds before a broken stream of events is resumed."""

AWAY_S = 60.0
"""How long a gateway that was there may be away, or turn its caller away, before a job is no longer followed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a client sends a request, and how long it waits between.

    Attributes:
        tries: Requests in all, the first included.
        longest: Longest wait, seconds; a longer `Retry-After` becomes an error for the caller.
        first: Seconds before the second try where there is no `Retry-After`; doubled each time, with jitter.
    """

    tries: int = 4
    longest: float = 30.0
    first: float = 0.25

    def wait_s(self, attempt: int, response: httpx2.Response) -> float | None:
        """Seconds to wait after try number `attempt` (from 1); None when its response is final."""
        if response.status_code not in {429, 503} or attempt >= self.tries:
            return None
        retry_after = read_retry_after(response)
        if retry_after is None:
            return min(self.longest, self.first * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        return retry_after if retry_after <= self.longest else None


class Absence:
    """The absence of a gateway while a job is followed: of one that was there it is borne, as when it restarts."""

    def __init__(self) -> None:
        self._until = -math.inf

    def end(self) -> None:
        """Note that the gateway answered."""
        self._until = math.inf

    @contextmanager
    def bear(self) -> Iterator[None]:
        """Bear that it does not answer in the block, or that a rate is used up, unless that lasts or it never did."""
        try:
            yield
            self.end()
        except (NotReady, RateLimited):
            self._until = min(self._until, time.monotonic() + AWAY_S)
            if time.monotonic() >= self._until:
                raise


def iterate_pauses(timeout: float | None) -> Iterator[float]:
    """Yield the seconds between two polls of a job: short at first, one second in the long run.

    Raises DeadlineExceeded: `timeout` seconds have passed.
    """
    until = float("inf") if timeout is None else time.monotonic() + timeout
    pause = 0.05
    while (left := until - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(1.0, pause * 1.5)
    raise DeadlineExceeded(f"The job has not ended after {timeout:g} s.", hint="It goes on; check again later.")
