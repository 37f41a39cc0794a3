"""Progress of a training for people: what is being done, how far it is, and about how long it will take.

On a terminal it is one line that changes. Elsewhere a line is printed every 10 s, whatever is being done.
"""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console

from fovea_recipes.training.recipe import Recipe
from fovea_recipes.training.trainer import FitProgress

INTERVAL_S = 10.0
"""Longest pause between two lines."""


class ProgressReport:
    """Reports until it is closed; a context manager. `interval_s` is between lines where there is no terminal."""

    def __init__(self, console: Console, interval_s: float = INTERVAL_S) -> None:
        self._console, self._interval_s = console, interval_s
        self._status = console.status("") if console.is_terminal else None
        self._text, self._since = "", time.monotonic()
        self._speed: dict[str, tuple[int, float]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="training-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
        if self._status is not None:
            self._status.stop()

    def begin(self, text: str) -> None:
        """Say what begins now."""
        self._text, self._since = text, time.monotonic()
        self._console.print(f"{text} …", highlight=False)

    def step(self, recipe: Recipe, progress: FitProgress) -> None:
        """Take the progress of a fit; the first step of each recipe is announced."""
        if recipe.name not in self._speed:
            self._speed[recipe.name] = (progress.step, time.monotonic())
            self.begin(f"Training {recipe.name}, {recipe.schedule.steps:,} steps")
        first, since = self._speed[recipe.name]
        done, left = progress.step - first, recipe.schedule.steps - progress.step
        rest = f", about {format_time((time.monotonic() - since) / done * left)} left" if done else ""
        self._text = (
            f"{recipe.name}: step {progress.step:,} of {recipe.schedule.steps:,}, loss {progress.loss:.3f}{rest}"
        )

    def _repeat(self) -> None:
        while not self._closed.wait(1.0 if self._status is not None else self._interval_s):
            line = f"{self._text} ({format_time(time.monotonic() - self._since)})"
            if self._status is not None:
                self._status.update(line)
            elif self._text:
                self._console.print(line, highlight=False)


def format_time(seconds: float) -> str:
    """Format a time as `45 s` or `3 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
