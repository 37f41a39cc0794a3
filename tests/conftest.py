"""Fixtures of tests that look at the console through a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from services.gateway.tests.browsing import browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of one file."""
    with browser() as started:
        yield started


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the browser complained about; a test that expects a complaint takes it out."""
    found: list[str] = []
    yield found
    assert not found
