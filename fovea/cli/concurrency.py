"""Concurrency: runs many actions at once, a limited number at a time, behind one progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fovea.cli.output import Screen


async def run_concurrently(
    actions: Sequence[Callable[[], Awaitable[None]]], concurrency: int, screen: Screen, label: str
) -> None:
    """Run all actions, at most `concurrency` at a time, behind a progress bar if there is a label."""
    limit = asyncio.Semaphore(concurrency)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_quiet = screen.as_json or len(actions) == 1 or not label
    with Progress(*columns, console=screen.err, transient=True, disable=is_quiet) as progress:
        row = progress.add_task("", total=len(actions))

        async def run_limited(action: Callable[[], Awaitable[None]]) -> None:
            async with limit:
                await action()
            progress.advance(row)

        await asyncio.gather(*map(run_limited, actions))
