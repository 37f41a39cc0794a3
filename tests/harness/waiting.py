"""Wait for what another thread, task or process brings about, and find free ports: no test needs a sleep of its own."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2

Found = TypeVar("Found")
POLL_S = 0.01


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
    """Return the first true answer of `condition`.

    Raises:
        AssertionError: There was none in time.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come about in {seconds} s"
        time.sleep(pause_s)
    return found


async def until(condition: Callable[[], Found], seconds: float = 20, what: str = "the condition") -> Found:
    """Return the first true answer of `condition`, while other tasks run.

    Raises:
        AssertionError: There was none in time.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come about in {seconds} s"
        await asyncio.sleep(POLL_S)
    return found
