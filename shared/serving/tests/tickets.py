"""A job's ticket for tests: it remembers what it was told, and is cancelled by the test."""

import asyncio


class Ticket:
    """A `Ticket` of `shared.jobs.queue`."""

    id = "j" * 32
    attempt = 1

    def __init__(self) -> None:
        self.told: list[tuple[float, str | None]] = []
        self.stop = asyncio.Event()

    async def progress(self, fraction: float, note: str | None = None) -> None:
        self.told.append((fraction, note))

    async def wait_until_cancelled(self) -> None:
        await self.stop.wait()
