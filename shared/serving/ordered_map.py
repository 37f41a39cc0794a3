"""Ordered concurrent map over an async stream: several items at a time, results in the items' order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_in_order(
    items: AsyncIterable[Item], work: Callable[[Item], Awaitable[Result]], *, ahead: int
) -> AsyncIterator[Result]:
    """Yield `work(item)` for every item, in order; closing the iterator cancels running items.

    Items are read only as fast as results are taken; at most `ahead` run or wait to be taken. Each runs as a task of
    its own, so that neighbours can share a micro-batch. An error of reading or working is raised when its turn comes.
    """
    slots = asyncio.Semaphore(ahead)
    started: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()

    async def run_one(item: Item) -> Result:
        return await work(item)

    async def read() -> None:
        async for item in items:
            await slots.acquire()
            started.put_nowait(asyncio.create_task(run_one(item)))

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: started.put_nowait(None))
    try:
        while (task := await started.get()) is not None:
            yield await task
            slots.release()
        await reader
    finally:
        reader.cancel()
        while not started.empty():
            if task := started.get_nowait():
                task.cancel()
