"""Result of a suite: rows of medians with their spread, each a ratio to the baseline of the same run."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One contender on one quantity: median, and the lowest and highest round."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One suite's answer. `targets` maps a claim to (reached, target)."""

    suite: str
    title: str
    how: str
    baseline: str
    rows: Sequence[Row]
    targets: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The table as plain data, with the machine and the time."""
        return {**asdict(self), "machine": machine(), "measured": datetime.now(UTC).isoformat(timespec="seconds")}


def row(name: str, unit: str, rounds: Sequence[float], baseline: float, note: str = "") -> Row:
    """Summarise the rounds of one contender against the baseline's median."""
    middle = statistics.median(rounds)
    return Row(name, unit, middle, min(rounds), max(rounds), middle / baseline, note)


def machine() -> dict[str, Any]:
    """The machine and builds that the numbers were measured on."""
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text("utf8").splitlines() if file.exists() else []
