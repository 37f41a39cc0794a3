"""Golden data of losses and metrics."""

from pathlib import Path
from typing import Any

from tests.golden import read_golden


def read(name: str) -> Any:
    return read_golden(Path(__file__).parent / "golden" / name)
