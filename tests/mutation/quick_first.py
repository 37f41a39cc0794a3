"""A plug-in for pytest in mutmut's processes: quick tests first, as mutants that die early cost least."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the seconds that mutmut measured before it ran the first mutant."""
    stats = Path("mutmut-stats.json")
    seconds = json.loads(stats.read_text("utf8"))["duration_by_test"] if stats.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
