"""Many deeds at once behind one progress bar. Knows neither pictures nor models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fovea.cli.output import Screen

__all__ = ["run_concurrently"]


async def run_concurrently(
    deeds: Sequence[Callable[[], Awaitable[None]]], concurrency: int, screen: Screen, doing: str
) -> None:
    """Do all deeds, so many at a time, behind a progress bar that says what is being done."""
    room = asyncio.Semaphore(concurrency)
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = screen.as_json or len(deeds) == 1
    with Progress(*columns, console=screen.err, transient=True, disable=quiet) as progress:
        row = progress.add_task("", total=len(deeds))

        async def bounded(deed: Callable[[], Awaitable[None]]) -> None:
            async with room:
                await deed()
            progress.advance(row)

        await asyncio.gather(*map(bounded, deeds))
