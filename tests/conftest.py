"""Fixtures of tests that use a product by its command line or through a browser; a folder says at which `url`."""

from collections.abc import Iterator
from typing import Any

import pytest

from services.gateway.tests.browsing import browser, watched
from tests.command import Command, command_runner


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


@pytest.fixture
def page(chromium: Any, url: str, complaints: list[str]) -> Iterator[Any]:
    """A fresh page of the console."""
    with watched(chromium, url, complaints) as opened:
        yield opened


@pytest.fixture
def fovea(url: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Run a command; gives its exit code, what it wrote and what it said beside."""
    monkeypatch.setenv("FOVEA_URL", url)
    return command_runner(monkeypatch, capfdbinary)
