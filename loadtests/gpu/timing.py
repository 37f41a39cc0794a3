"""Timing on a device, and rows of the report: what was computed against what was measured."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from services.llm_longctx.kernels.device.cards import CARDS, GpuCard

_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    Attributes:
        part: Its part of the report: `kernels`, `decode`, `vision` …
        name: Name of the timed work.
        by: The engine that ran it.
        computed_ms: By the cost model, for our own kernels.
        measured_ms: Median; None where it did not run.
        note: Why not, or what else is to be known.
    """

    part: str
    name: str
    by: str
    computed_ms: float | None = None
    measured_ms: float | None = None
    note: str = ""


def measure_ms(run: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    """Median milliseconds of a call, by the device's own clock where it has one."""
    for _ in range(_WARM_UPS):
        run()
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            cuda: Any = torch.cuda  # torch leaves its events without annotations
            begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            before = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - before))
    return float(np.median(times))


def row_of(
    part: str,
    name: str,
    by: str,
    run: Callable[[], object],
    device: torch.device,
    *,
    computed_ms: float | None = None,
    rounds: int = 10,
) -> Row:
    """Time a call; what fails or does not fit becomes a row that says why."""
    try:
        found = measure_ms(run, device, rounds)
    except Exception as error:  # noqa: BLE001  # compilers and runtimes have errors of their own; the next case goes on
        return Row(part, name, by, computed_ms, None, describe(error))
    return Row(part, name, by, computed_ms, found)


def guard(part: str, name: str, by: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows, and one that says why where they could not be made: the next case goes on."""
    try:
        yield from rows
    except Exception as error:  # noqa: BLE001  # as above
        yield Row(part, name, by, note=f"failed: {describe(error)}")


def describe(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:120]}"


def card_named(name: str) -> GpuCard | None:
    """The card of the cost model that a device's name means; None for a card it does not know, such as an L40."""
    words = re.split(r"[^A-Za-z0-9]+", name)
    return next((card for card in CARDS if card.name in words), None)
