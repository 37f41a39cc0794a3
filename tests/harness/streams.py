"""Streams of models, read by tests that have no event loop."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any


def events_of(stream: AsyncGenerator[Any, None]) -> Iterator[Any]:
    """The events of a stream as they come, on an event loop of their own; leaving early closes the stream."""
    with asyncio.Runner() as runner:
        try:
            while (event := runner.run(_next(stream))) is not None:
                yield event
        finally:
            runner.run(stream.aclose())


async def _next(stream: AsyncGenerator[Any, None]) -> Any:
    return await anext(stream, None)
