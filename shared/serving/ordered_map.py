"""Works on several items of a stream at a time, and hands out the results in the items' order. Knows no transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

__all__ = ["map_in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_in_order(
    items: AsyncIterable[Item], work: Callable[[Item], Awaitable[Result]], *, ahead: int
) -> AsyncIterator[Result]:
    """Yield `work(item)` for every item, in order; closing the iterator cancels what is under way.

    Args:
        items: Read only as fast as results are taken.
        work: Runs as a task of its own, so that neighbours can share a micro-batch.
        ahead: Items that may be under way or waiting to be taken.

    Raises:
        Exception: Whatever reading or working raises, when its turn comes.
    """
    room = asyncio.Semaphore(ahead)
    begun: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()

    async def one(item: Item) -> Result:
        return await work(item)

    async def read() -> None:
        async for item in items:
            await room.acquire()
            begun.put_nowait(asyncio.create_task(one(item)))

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: begun.put_nowait(None))
    try:
        while (task := await begun.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        reader.cancel()
        while not begun.empty():
            if task := begun.get_nowait():
                task.cancel()
