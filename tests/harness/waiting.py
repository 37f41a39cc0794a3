"""Wait for what another thread, task or process brings about, and find free ports: no test needs a sleep of its own."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2

Found = TypeVar("Found")
POLL_S = 0.01


def pause(waited_s: float, least_s: float = POLL_S) -> float:
    """Seconds until the next look: the longer it has taken, the rarer, since a look may ask a server."""
    return max(least_s, min(waited_s / 40, 0.25))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    """Whether a service, or a gateway for all services that it knows, says that it is ready."""
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def wait_until(
    condition: Callable[[], Found], seconds: float = 20, what: str = "the condition", pause_s: float = POLL_S
) -> Found:
    """Return the first true answer of `condition`; it is an AssertionError that there was none in time."""
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"{what} did not come about in {seconds} s"
        time.sleep(pause(waited, pause_s))
    return found


async def until(condition: Callable[[], Found], seconds: float = 20, what: str = "the condition") -> Found:
    """Return the first true answer of `condition`, as `wait_until` does, while other tasks run."""
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"{what} did not come about in {seconds} s"
        await asyncio.sleep(pause(waited))
    return found


async def sleep_through_a_cancel(swallowed: asyncio.Event) -> None:
    """Sleep for a minute. The first cancellation is swallowed, as a client of Redis may do, and noted."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        if swallowed.is_set():
            raise
        swallowed.set()
